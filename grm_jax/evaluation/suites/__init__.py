"""Benchmarks, by the name that a config calls them.

Each module has

- load(path): the examples of its files as published, local or gs://;
- score(results): its metric as a metrics.Score;
- interval(results): 95 % of its overall number.
"""

from grm_jax.evaluation.suites import (
  judgebench,
  llmbar,
  pandalm,
  ppe,
  realmistake,
  rewardbench,
  rewardbench2,
  rmb,
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
}
