"""Benchmarks by their names in configs.

Each module has these functions:

- load(path): loads the examples of the published files, local or gs://;
- score(results): returns the metrics.Score of results;
- interval(results): returns the 95 % interval of the overall score;
- terms(results): returns the score as a weighted sum of means. Suites whose
  score is not such a sum (realmistake) do not have it.
"""

from grm_jax.evaluation.suites import (
  evalbiasbench,
  hhh,
  judgebench,
  llmbar,
  pandalm,
  ppe,
  realmistake,
  rewardbench,
  rewardbench2,
  rmb,
  rmbench,
)

SUITES = {
  'rewardbench': rewardbench,
  'rewardbench2': rewardbench2,
  'ppe': ppe,
  'rmb': rmb,
  'judgebench': judgebench,
  'realmistake': realmistake,
  'llmbar': llmbar,
  'pandalm': pandalm,
  'rmbench': rmbench,
  'evalbiasbench': evalbiasbench,
  'hhh': hhh,
}
