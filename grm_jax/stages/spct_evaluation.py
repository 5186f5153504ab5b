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

from grm_jax.data import sources
from grm_jax.errors import UserError
from grm_jax.evaluation import samples, spct_report
from grm_jax.evaluation.spct_report import Judge as JudgeReport
from grm_jax.judges import journaled, loading
from grm_jax.judges.generative import Judge, Settings
from grm_jax.judges.scalar import MetaJudge
from grm_jax.judging import asked
from grm_jax.judging.judgement import Judged
from grm_jax.model.compute import Compute
from grm_jax.parallel import files, mesh, start
from grm_jax.sampling import placing
from grm_jax.stages import runs, spct_data, spct_plan
from grm_jax.training import metrics, pretrained

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
  power = e.k_before > 0 and not e.k_before & (e.k_before - 1)
  if not (power and e.k_before < e.k) and e.k_before != e.k:
    raise UserError(
      f'config.evaluation.k_before is {e.k_before}; it must be '
      f'config.evaluation.k={e.k} or a power of 2 below, to be a point of its '
      'curve'
    )
  if e.before and config.checkpoint == pretrained.SCRATCH:
    raise UserError(
      'config.evaluation.before is true and config.checkpoint is scratch: '
      'there is no judge before training; give a model directory'
    )
  asked.check(e.k, e.order, e.temperature, 'config.evaluation')
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
  examples, _ = sources.load(held_out, 'held_out', config.strict)
  models = spct_plan.judges(config, workdir)
  meta = ''
  if 'meta_rm' in spct_plan.chosen(config):
    meta = os.path.join(workdir, 'meta_rm', runs.MODEL)
  judge, found = None, {}
  for name, directory in models.items():
    path = _samples_path(folder, name)
    if not files.exists(path):
      step = None
      if name == spct_plan.BEFORE:
        step = pretrained.step_of(config.step)
      judge = _with_weights(config, judge, (directory, step), meta)
      k = config.evaluation.k_before
      k = config.evaluation.k if directory == list(models.values())[-1] else k
      _judge_all(judge, examples, folder, name, k)
    found[name] = list(samples.read(path))
  if not jax.process_index():
    _write(config, workdir, folder, found)
  start.wait_for_all('report')
  return True


def say(workdir: str) -> None:
  """Prints the table and where the report is."""
  folder = os.path.join(workdir, spct_plan.EVALUATION)
  summary = json.loads((epath.Path(folder) / SUMMARY).read_text())
  runs.say(spct_report.table_of(summary))
  runs.say(f'report -> {os.path.join(folder, REPORT)}')


def _samples_path(folder: str, name: str) -> str:
  return os.path.join(folder, f'{name}.samples.jsonl')


def _settings(config) -> Settings:
  e = config.evaluation
  return Settings(
    **spct_plan.prompts(config),
    order=e.order,
    temperature=e.temperature,
    seed=config.seed,
    meta=config.prompt.meta,
  )


def _with_weights(config, judge, checkpoint, meta) -> Judge:
  """A judge of (directory, step), by the programs and the meta RM of before."""
  if judge is None:
    sampling = config.evaluation.sampling.to_dict()
    sampling['buckets'] = spct_plan.buckets(config, sampling['buckets'])
    weights = sampling.pop('weights')
    layouts = (
      mesh.from_config(config, weights=weights),
      mesh.from_config(config),
    )
    compute = Compute(**config.compute)
    settings = _settings(config)
    return loading.load(
      *checkpoint, meta, settings, compute, layouts, **sampling
    )
  programs = judge.engine.programs
  params = pretrained.load_params(*checkpoint, programs.model)
  programs.weights, _ = placing.place(
    programs.model, params, config.evaluation.sampling.int8
  )
  return judge


def _judge_all(judge, examples, folder, name, k) -> None:
  """Writes the samples and the greedy judgements of a model."""
  plain = Judge(judge.engine, judge.tokenizer, judge.settings)
  path = _samples_path(folder, name)
  header, rate = {'judge': name}, functools.partial(_rated, judge.meta)
  drawn = journaled.judge_all(
    plain, examples, k, f'{path}.partial', header, f'{name}, {k} samples', rate
  )
  greedy = journaled.judge_all(
    plain, examples, 0, f'{path}.greedy', header, f'{name}, greedy'
  )
  if not jax.process_index():
    samples.write(
      path,
      (
        Judged(x.example, x.samples, y.samples[0])
        for x, y in zip(drawn, greedy, strict=True)
      ),
    )
    for journal in (f'{path}.partial', f'{path}.greedy'):
      files.remove(journal)
  start.wait_for_all(path)


def _rated(meta: MetaJudge | None, judged: Judged) -> Judged:
  """With the meta RM's opinions, if there is one; NaN where it cannot read.

  NaN is the least. The meta RM's prompts are longer than the judge's, whose
  votes count all the same.
  """
  if meta is None:
    return judged
  rated = meta.rate(judged)
  if isinstance(rated, Judged):
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
  summary = spct_report.summary(judges, config.evaluation.k_before, facts)
  training = {
    name: _rows(os.path.join(workdir, name, metrics.FILE))
    for name in ('base', *found, 'meta_rm')
    if name != spct_plan.BEFORE
  }
  spct_report.write(folder, judges, summary, training, files.write_whole)
  # Last: where it is, all is there.
  files.write_whole(
    os.path.join(folder, SUMMARY), json.dumps(summary, indent=2) + '\n'
  )


def _rows(path: str) -> list[dict]:
  """The rows of metrics.jsonl, if the stage was run."""
  if not files.exists(path):
    return []
  return [json.loads(x) for x in epath.Path(path).read_text().splitlines()]


def _facts(config, workdir, found) -> dict[str, str]:
  """What the report says at its top."""
  e, p = config.evaluation, spct_plan.prompts(config)
  return {
    'data': config.data,
    'begins with': f'{config.checkpoint} ({config.sft.size})'
    if config.checkpoint == pretrained.SCRATCH
    else config.checkpoint,
    'cold start': _cold_start(config, workdir),
    'stages': ', '.join(spct_plan.chosen(config)),
    'held-out examples': str(len(next(iter(found.values())))),
    'template': p['template'],
    'temperature': str(e.temperature),
    'order of responses': e.order,
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
    f'{config.sft.data.mistakes:.0%} of them with a mistake'
  )
