"""What /metrics tells, in Prometheus' text form."""

from collections.abc import Callable, Iterator, Mapping

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from grm_jax.judgement.judgement import JudgedExample
from grm_jax.serving.worker import JudgeWorker

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# Of the engine: what it counts, and in which words it is told.
_ENGINE = {
  'tokens': 'Tokens that were drawn.',
  'row_steps': 'Tokens that would have been, had all rows been busy.',
  'prompts': 'Prompts that were computed.',
  'generations': 'Generations that were written.',
}


class ServerMetrics:
  """Counters of a service, with a registry of their own."""

  def __init__(
    self, desk: JudgeWorker, counts: Callable[[], Mapping[str, float]]
  ):
    """Begins at zero.

    Args:
      desk: whose queue is told.
      counts: of the engine, see _ENGINE.
    """
    self.registry = CollectorRegistry()
    given = {'registry': self.registry}
    self._requests = Counter(
      'grm_requests',
      'Requests, by path and HTTP status.',
      ['path', 'status'],
      **given,
    )
    self._examples = Counter(
      'grm_examples', 'Examples, by what came of them.', ['outcome'], **given
    )
    self._samples = Counter('grm_samples', 'Judgements written.', **given)
    self._failures = Counter(
      'grm_parse_failures', 'Judgements that do not parse.', **given
    )
    self._waited = Histogram(
      'grm_queued_seconds',
      'From a request to the begin of its work.',
      buckets=_SECONDS,
      **given,
    )
    self._took = Histogram(
      'grm_seconds', 'From a request to its answer.', buckets=_SECONDS, **given
    )
    self.registry.register(_Gauges(desk, counts))

  def answered(self, path: str, status: int) -> None:
    """A request to this path has its status."""
    self._requests.labels(path, str(status)).inc()

  def judged(self, judged: JudgedExample, waited: float, took: float) -> None:
    """An example was judged."""
    self._examples.labels('judged').inc()
    self._samples.inc(len(judged.samples))
    self._failures.inc(sum(x.scores is None for x in judged.samples))
    self._waited.observe(waited)
    self._took.observe(took)

  def gave_up(self, why: str) -> None:
    """An example was taken and not judged: 'fault', 'late' or 'gone'."""
    self._examples.labels(why).inc()

  def text(self) -> bytes:
    """All of them, see CONTENT_TYPE."""
    return prometheus_client.generate_latest(self.registry)


class _Gauges(Collector):
  """What is read when it is asked for."""

  def __init__(self, desk, counts):
    self._desk, self._counts = desk, counts

  def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    waiting, at_work = self._desk.counts()
    for name, words, value in (
      ('grm_waiting', 'Examples that wait.', waiting),
      ('grm_at_work', 'Examples that are judged now.', at_work),
    ):
      yield GaugeMetricFamily(name, words, value)
    counts = self._counts()
    for name, words in _ENGINE.items():
      yield CounterMetricFamily(f'grm_engine_{name}', words, counts[name])
