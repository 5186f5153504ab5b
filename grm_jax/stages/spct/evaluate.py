"""Evaluates the GRMs and the meta RM of a run on held-out examples.

Every GRM judges each example greedily and with k samples; the accuracy at
smaller k comes from subsets of these samples. The judgements are stored, so
that an interrupted run resumes.

  MODEL.samples.jsonl  judgements of a GRM, with scores of the meta RM
  summary.json         the table as JSON
  report.html, *.png, results.json
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping, Sequence

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory
from grm_jax.data import example_sources
from grm_jax.errors import UserError
from grm_jax.evaluation import judgement_io, pipeline_report
from grm_jax.evaluation.pipeline_report import StageResult
from grm_jax.io import atomic_io
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample
from grm_jax.judges import factory as judge_factory
from grm_jax.judges import resumable
from grm_jax.judges.generative import Judge, JudgeConfig
from grm_jax.judges.meta_rm import MetaJudge
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sharding import distributed, mesh
from grm_jax.stages import input_identity
from grm_jax.stages.spct import data as spct_data
from grm_jax.stages.spct import plan as spct_plan
from grm_jax.training import metric_writer
from grm_jax.training import run as training_run

SUMMARY, REPORT = 'summary.json', 'report.html'
TITLES = {
  'before': 'before training',
  'sft': 'after the cold start',
  'rft': 'after RFT',
  'grpo': 'after GRPO',
}


def check(config: ConfigDict) -> None:
  """Raises UserError if config.evaluation is wrong."""
  evaluation = config.evaluation
  k, k_intermediate = evaluation.k, evaluation.k_intermediate
  # Curves have points at powers of 2 and at k.
  is_power_of_2 = k_intermediate > 0 and not k_intermediate & (
    k_intermediate - 1
  )
  if not (is_power_of_2 and k_intermediate < k) and k_intermediate != k:
    raise UserError(
      f'config.evaluation.k_intermediate is {k_intermediate}; set it to a '
      f'power of 2 below config.evaluation.k={k}, or to {k}'
    )
  if (
    evaluation.evaluate_initial and config.checkpoint == model_directory.SCRATCH
  ):
    raise UserError(
      'config.evaluation.evaluate_initial is true, but config.checkpoint is '
      'scratch, which has no judge before training; set config.checkpoint to a '
      'model directory'
    )


def run(config: ConfigDict, workdir: str, folder: str) -> bool:
  """Judges with all models that have no samples yet, and writes the report.

  Args:
    config: as configs/spct.py.
    workdir: folder of the folders of all stages.
    folder: folder of this stage.

  Returns:
    True: the stage always finishes.
  """
  held_out = spct_data.path(
    os.path.join(workdir, spct_plan.DATA), spct_data.HELD_OUT
  )
  examples, _ = example_sources.load(
    held_out, 'held_out', config.fail_on_bad_rows
  )
  directories = spct_plan.judge_directories(config, workdir)
  *_, last = directories
  meta_checkpoint = ''
  if 'meta_rm' in spct_plan.selected_stages(config):
    meta_checkpoint = os.path.join(workdir, 'meta_rm', training_run.MODEL)
  judge: Judge | None = None
  judged = {}
  for name, directory in directories.items():
    path = _samples_path(folder, name)
    if not atomic_io.exists(path):
      step = config.checkpoint_step if name == spct_plan.BEFORE else -1
      step_or_none = model_directory.step_or_latest(step)
      if judge is None:
        judge = _load_judge(config, directory, step_or_none, meta_checkpoint)
      else:
        judge = _load_weights(config, judge, directory, step_or_none)
      is_last = name == last
      k = config.evaluation.k if is_last else config.evaluation.k_intermediate
      identity = {
        'checkpoint': input_identity.of_checkpoint(directory, step),
        'meta_checkpoint': input_identity.of_checkpoint(meta_checkpoint, -1),
        'examples': input_identity.of_items(examples),
      }
      _judge_all(judge, examples, folder, name, k, identity)
    judged[name] = list(judgement_io.read(path))
  if not jax.process_index():
    _write_report(config, workdir, folder, judged)
  distributed.barrier('report')
  return True


def print_summary(workdir: str) -> None:
  """Prints the table and the path of the report."""
  folder = os.path.join(workdir, spct_plan.EVALUATION)
  summary = json.loads((epath.Path(folder) / SUMMARY).read_text())
  training_run.print_on_host0(pipeline_report.stage_table(summary))
  training_run.print_on_host0(f'report -> {os.path.join(folder, REPORT)}')


def _samples_path(folder: str, name: str) -> str:
  return os.path.join(folder, f'{name}.samples.jsonl')


def _judge_config(config: ConfigDict) -> JudgeConfig:
  evaluation, prompt = config.evaluation, spct_plan.prompt_settings(config)
  return JudgeConfig(
    template=prompt['template'],
    single=prompt['single'],
    score_range=tuple(prompt['score_range']),
    too_long=prompt['too_long'],
    truncated=prompt['truncated'],
    order=evaluation.response_order,
    temperature=evaluation.temperature,
    seed=config.seed,
    meta=config.prompt.meta,
  )


def _load_judge(
  config: ConfigDict, directory: str, step: int | None, meta_checkpoint: str
) -> Judge:
  """Returns a judge with the weights of a model directory."""
  sampling = config.evaluation.sampling
  options = judge_factory.sampling_options(
    sampling, directory, 'config.evaluation.sampling'
  )
  options['prompt_buckets'] = spct_plan.prompt_buckets(
    config, options['prompt_buckets']
  )
  layouts = (
    mesh.from_config(config, weights=sampling.weights),
    mesh.from_config(config),
  )
  return judge_factory.load(
    directory,
    step,
    meta_checkpoint,
    _judge_config(config),
    ComputeConfig(**config.compute),
    layouts,
    **options,
  )


def _load_weights(
  config: ConfigDict, judge: Judge, directory: str, step: int | None
) -> Judge:
  """Returns the judge with other weights; it keeps programs and meta RM."""
  int8 = config.evaluation.sampling.int8
  weights = judge_factory.load_weights(
    directory, step, judge.engine.model, int8
  )
  return judge.with_weights(weights)


def _judge_all(
  judge: Judge,
  examples: Sequence[JudgingExample],
  folder: str,
  name: str,
  k: int,
  identity: Mapping[str, str],
) -> None:
  """Writes the samples and the greedy judgements of a model."""
  # Without the meta RM, which `postprocess` applies: it must not fail examples
  # that only the meta RM cannot read.
  grm = Judge(judge.engine, judge.weights, judge.tokenizer, judge.config)
  path = _samples_path(folder, name)
  header = {'judge': name, **identity}
  sampled = resumable.judge_all(
    grm,
    examples,
    k,
    f'{path}.partial',
    header,
    f'{name}, {k} samples',
    postprocess=functools.partial(_add_meta_scores, judge.meta),
  )
  greedy = resumable.judge_all(
    grm, examples, 0, f'{path}.greedy', header, f'{name}, greedy'
  )
  if not jax.process_index():
    judgement_io.write(
      path,
      (
        JudgedExample(x.example, x.samples, y.samples[0])
        for x, y in zip(sampled, greedy, strict=True)
      ),
    )
    for journal in (f'{path}.partial', f'{path}.greedy'):
      atomic_io.remove(journal)
  distributed.barrier(path)


def _add_meta_scores(
  meta: MetaJudge | None, judged: JudgedExample
) -> JudgedExample:
  """Adds the scores of the meta RM, if there is one.

  The prompts of the meta RM are longer than the judge's. The scores of an
  example whose prompts are too long are NaN, which ranks last; its votes count
  without the meta RM.
  """
  if meta is None:
    return judged
  rated = meta.rate(judged)
  if isinstance(rated, ExampleError):
    logging.warning('%s: %s', rated.id, rated.reason)
    unrated = (dataclasses.replace(x, meta=math.nan) for x in judged.samples)
    return dataclasses.replace(judged, samples=tuple(unrated))
  return rated


def _write_report(
  config: ConfigDict,
  workdir: str,
  folder: str,
  judged: Mapping[str, Sequence[JudgedExample]],
) -> None:
  """Writes the report and SUMMARY."""
  results = {
    name: StageResult.from_judged(TITLES[name], examples, config.seed)
    for name, examples in judged.items()
  }
  num_examples = len(next(iter(judged.values())))
  summary = pipeline_report.summary(
    results,
    config.evaluation.k_intermediate,
    _facts(config, workdir, num_examples),
  )
  folders = {
    name: os.path.join(workdir, name)
    for name in (spct_plan.BASE, *judged, 'meta_rm')
  }
  metrics = {
    name: metric_writer.read_rows(path)
    for name, path in folders.items()
    if atomic_io.exists(os.path.join(path, training_run.MODEL))
  }
  pipeline_report.write(folder, results, summary, metrics, atomic_io.write_file)
  # SUMMARY comes last: where it exists, all other files do.
  atomic_io.write_file(
    os.path.join(folder, SUMMARY), json.dumps(summary, indent=2) + '\n'
  )


def _facts(
  config: ConfigDict, workdir: str, num_examples: int
) -> dict[str, str]:
  """Returns the settings at the top of the report."""
  initial = config.checkpoint
  if initial == model_directory.SCRATCH:
    initial = f'{initial} ({config.sft.size or "tiny"})'
  return {
    'data': config.data,
    'initial model': initial,
    'cold start': _describe_cold_start(config, workdir),
    'stages': ', '.join(spct_plan.selected_stages(config)),
    'held-out examples': str(num_examples),
    'template': spct_plan.prompt_settings(config)['template'],
    'temperature': str(config.evaluation.temperature),
    'response order': config.evaluation.response_order,
    'seed': str(config.seed),
  }


def _describe_cold_start(config: ConfigDict, workdir: str) -> str:
  if 'sft' not in spct_plan.selected_stages(config):
    return 'none'
  spec = spct_plan.cold_start_texts(config, workdir)
  if 'verdicts:' in spec:
    return (
      'labels of training examples, written as judgements without reasoning; '
      'do not expect reasoning from the judges'
    )
  if config.sft.data.texts:
    return spec
  return (
    f'{config.examples.texts} judgements by the teacher of practice problems, '
    f'{config.sft.data.teacher_error_rate:.0%} of them with a mistake'
  )
