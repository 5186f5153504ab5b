"""The evaluation of a whole run: GRMs and meta RM on held-out examples.

Every GRM judges each example greedily and k times; accuracy at smaller k comes
from subsets of these samples. What was judged is kept, so that a run that was
killed goes on, and the report can be written again.

  MODEL.samples.jsonl  what each GRM judged, with the meta RM's opinions
  summary.json         the table in numbers
  report.html, *.png, results.json
"""

import dataclasses
import functools
import json
import math
import os

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory
from grm_jax.data import example_sources
from grm_jax.errors import UserError
from grm_jax.evaluation import judgement_io, pipeline_report
from grm_jax.evaluation.pipeline_report import StageResult as JudgeReport
from grm_jax.io import atomic_io
from grm_jax.judgement import judgement_request
from grm_jax.judgement.judgement import JudgedExample
from grm_jax.judges import factory as judge_factory
from grm_jax.judges import resumable
from grm_jax.judges.baselines.scalar_rm import MetaJudge
from grm_jax.judges.generative import Judge, JudgeConfig
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sampling import decode_weights
from grm_jax.sharding import distributed, mesh
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
  """UserError for settings that would only be seen after hours."""
  e = config.evaluation
  if e.k < 1:
    raise UserError(f'config.evaluation.k is {e.k}; it must be 1 or more')
  power = e.k_intermediate > 0 and not e.k_intermediate & (e.k_intermediate - 1)
  if not (power and e.k_intermediate < e.k) and e.k_intermediate != e.k:
    raise UserError(
      f'config.evaluation.k_intermediate is {e.k_intermediate}; it must be '
      f'config.evaluation.k={e.k} or a power of 2 below, to be a point of its '
      'curve'
    )
  if e.evaluate_initial and config.checkpoint == model_directory.SCRATCH:
    raise UserError(
      'config.evaluation.evaluate_initial is true and config.checkpoint is scratch: '
      'there is no judge before training; give a model directory'
    )
  judgement_request.check(
    e.k, e.response_order, e.temperature, 'config.evaluation'
  )
  _settings(config)


def run(config: ConfigDict, workdir: str, folder: str) -> bool:
  """Judges what is not judged yet, and writes summary and report.

  Args:
    config: as configs/spct.py.
    workdir: with the folders of the stages before.
    folder: of this one.

  Returns:
    True, when all is written.
  """
  held_out = spct_data.path(
    os.path.join(workdir, spct_plan.DATA), spct_data.HELD_OUT
  )
  examples, _ = example_sources.load(
    held_out, 'held_out', config.fail_on_bad_rows
  )
  models = spct_plan.judges(config, workdir)
  meta = ''
  if 'meta_rm' in spct_plan.chosen(config):
    meta = os.path.join(workdir, 'meta_rm', training_run.MODEL)
  judge, found = None, {}
  for name, directory in models.items():
    path = _samples_path(folder, name)
    if not atomic_io.exists(path):
      step = None
      if name == spct_plan.BEFORE:
        step = model_directory.step_of(config.checkpoint_step)
      judge = _with_weights(config, judge, (directory, step), meta)
      k = config.evaluation.k_intermediate
      k = config.evaluation.k if directory == list(models.values())[-1] else k
      _judge_all(judge, examples, folder, name, k)
    found[name] = list(judgement_io.read(path))
  if not jax.process_index():
    _write(config, workdir, folder, found)
  distributed.barrier('report')
  return True


def say(workdir: str) -> None:
  """Prints the table and where the report is."""
  folder = os.path.join(workdir, spct_plan.EVALUATION)
  summary = json.loads((epath.Path(folder) / SUMMARY).read_text())
  training_run.print_on_host0(pipeline_report.table_of(summary))
  training_run.print_on_host0(f'report -> {os.path.join(folder, REPORT)}')


def _samples_path(folder: str, name: str) -> str:
  return os.path.join(folder, f'{name}.samples.jsonl')


def _settings(config) -> JudgeConfig:
  e = config.evaluation
  return JudgeConfig(
    **spct_plan.prompts(config),
    order=e.response_order,
    temperature=e.temperature,
    seed=config.seed,
    meta=config.prompt.meta,
  )


def _with_weights(config, judge, checkpoint, meta) -> Judge:
  """A judge of (directory, step), by the programs and the meta RM of before."""
  if judge is None:
    sampling = config.evaluation.sampling.to_dict()
    sampling['prompt_buckets'] = spct_plan.buckets(
      config, sampling['prompt_buckets']
    )
    weights = sampling.pop('weights')
    layouts = (
      mesh.from_config(config, weights=weights),
      mesh.from_config(config),
    )
    compute = ComputeConfig(**config.compute)
    settings = _settings(config)
    return judge_factory.load(
      *checkpoint, meta, settings, compute, layouts, **sampling
    )
  programs = judge.engine.programs
  params = model_directory.load_params(*checkpoint, programs.model)
  programs.weights, _ = decode_weights.place(
    programs.model, params, config.evaluation.sampling.int8
  )
  return judge


def _judge_all(judge, examples, folder, name, k) -> None:
  """Writes the samples and the greedy judgements of a model."""
  plain = Judge(judge.engine, judge.tokenizer, judge.settings)
  path = _samples_path(folder, name)
  header, rate = {'judge': name}, functools.partial(_rated, judge.meta)
  drawn = resumable.judge_all(
    plain, examples, k, f'{path}.partial', header, f'{name}, {k} samples', rate
  )
  greedy = resumable.judge_all(
    plain, examples, 0, f'{path}.greedy', header, f'{name}, greedy'
  )
  if not jax.process_index():
    judgement_io.write(
      path,
      (
        JudgedExample(x.example, x.samples, y.samples[0])
        for x, y in zip(drawn, greedy, strict=True)
      ),
    )
    for journal in (f'{path}.partial', f'{path}.greedy'):
      atomic_io.remove(journal)
  distributed.barrier(path)


def _rated(meta: MetaJudge | None, judged: JudgedExample) -> JudgedExample:
  """With the meta RM's opinions, if there is one; NaN where it cannot read.

  NaN is the least. The meta RM's prompts are longer than the judge's, whose
  votes count all the same.
  """
  if meta is None:
    return judged
  rated = meta.rate(judged)
  if isinstance(rated, JudgedExample):
    return rated
  logging.warning('%s: %s', rated.id, rated.reason)
  unread = (dataclasses.replace(x, meta=math.nan) for x in judged.samples)
  return dataclasses.replace(judged, samples=tuple(unread))


def _write(config, workdir, folder, found) -> None:
  """The report of all that was judged, and its table in numbers."""
  judges = {
    name: JudgeReport.of(TITLES[name], judged, config.seed)
    for name, judged in found.items()
  }
  facts = _facts(config, workdir, found)
  summary = pipeline_report.summary(
    judges, config.evaluation.k_intermediate, facts
  )
  training = {
    name: _rows(os.path.join(workdir, name, metric_writer.FILE))
    for name in ('base', *found, 'meta_rm')
    if name != spct_plan.BEFORE
  }
  pipeline_report.write(
    folder, judges, summary, training, atomic_io.write_whole
  )
  # Last: where it is, all is there.
  atomic_io.write_whole(
    os.path.join(folder, SUMMARY), json.dumps(summary, indent=2) + '\n'
  )


def _rows(path: str) -> list[dict]:
  """The rows of metrics.jsonl, if the stage was run."""
  if not atomic_io.exists(path):
    return []
  return [json.loads(x) for x in epath.Path(path).read_text().splitlines()]


def _facts(config, workdir, found) -> dict[str, str]:
  """What the report says at its top."""
  e, p = config.evaluation, spct_plan.prompts(config)
  return {
    'data': config.data,
    'begins with': f'{config.checkpoint} ({config.sft.size})'
    if config.checkpoint == model_directory.SCRATCH
    else config.checkpoint,
    'cold start': _cold_start(config, workdir),
    'stages': ', '.join(spct_plan.chosen(config)),
    'held-out examples': str(len(next(iter(found.values())))),
    'template': p['template'],
    'temperature': str(e.temperature),
    'order of responses': e.response_order,
    'seed': str(config.seed),
  }


def _cold_start(config, workdir) -> str:
  if 'sft' not in spct_plan.chosen(config):
    return 'none'
  spec = spct_plan.cold_start_texts(config, workdir)
  if 'verdicts:' in spec:
    return (
      'known verdicts of training examples in the form of judgements; they '
      'carry no reasoning, so that none can be expected of the judges'
    )
  if config.sft.data.texts:
    return spec
  return (
    f'{config.examples.texts} judgements by the practice teacher, '
    f'{config.sft.data.teacher_error_rate:.0%} of them with a mistake'
  )
