"""Metrics of the service in Prometheus' text format."""

from collections.abc import Callable, Iterator, Mapping

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from grm_jax.judgement.judgement import JudgedExample
from grm_jax.serving.worker import JudgeWorker

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_FIRST_CHECK = 16  # samples before the first report of failures
_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# Counters of the sampling engine and their help texts.
_ENGINE_COUNTERS = {
  'tokens': 'Sampled tokens.',
  'row_steps': 'Tokens that could be sampled if no row were idle.',
  'prompts': 'Prefilled prompts.',
  'generations': 'Finished generations.',
}


class ServerMetrics:
  """Counters and histograms of one service, in their own registry."""

  def __init__(
    self,
    worker: JudgeWorker,
    engine_counts: Callable[[], Mapping[str, float]],
    on_counts: Callable[[int, int, int], None] = lambda *counts: None,
  ):
    """Starts all counters at zero.

    Args:
      worker: the worker whose queue is measured.
      engine_counts: returns a value for each key of _ENGINE_COUNTERS.
      on_counts: called with the numbers so far of samples, parse failures and
        truncated samples, less and less often.
    """
    self._on_counts = on_counts
    self.registry = registry = CollectorRegistry()
    self._requests = Counter(
      'grm_requests',
      'Requests by path and HTTP status.',
      ['path', 'status'],
      registry=registry,
    )
    self._examples = Counter(
      'grm_examples', 'Examples by outcome.', ['outcome'], registry=registry
    )
    self._samples = Counter(
      'grm_samples', 'Sampled judgements.', registry=registry
    )
    self._parse_failures = Counter(
      'grm_parse_failures',
      'Sampled judgements that do not parse.',
      registry=registry,
    )
    self._truncated = Counter(
      'grm_truncated_samples',
      'Sampled judgements that reached the token limit.',
      registry=registry,
    )
    self._counts = [0, 0, 0]  # samples, failures, truncated
    self._next_check = _FIRST_CHECK
    self._queue_wait = Histogram(
      'grm_queue_wait_seconds',
      'Time of an example in the queue.',
      buckets=_BUCKETS_S,
      registry=registry,
    )
    self._request_duration = Histogram(
      'grm_request_duration_seconds',
      'Time from the arrival of an example to its result.',
      buckets=_BUCKETS_S,
      registry=registry,
    )
    registry.register(_CurrentValues(worker, engine_counts))

  def count_response(self, path: str, status: int) -> None:
    """Counts an HTTP response."""
    self._requests.labels(path, str(status)).inc()

  def count_judged(
    self, judged: JudgedExample, queue_wait_s: float, duration_s: float
  ) -> None:
    """Counts a judged example, its samples and its parse failures."""
    self._examples.labels('judged').inc()
    self._samples.inc(len(judged.samples))
    failures = sum(x.scores is None for x in judged.samples)
    truncated = sum(x.truncated for x in judged.samples)
    self._parse_failures.inc(failures)
    self._truncated.inc(truncated)
    self._check_failures(len(judged.samples), failures, truncated)
    self._queue_wait.observe(queue_wait_s)
    self._request_duration.observe(duration_s)

  def _check_failures(self, *counts: int) -> None:
    """Reports all counts so far after 16, 32, 64, ... samples."""
    self._counts = [x + y for x, y in zip(self._counts, counts, strict=True)]
    if self._counts[0] >= self._next_check:
      self._next_check = 2 * self._counts[0]
      self._on_counts(*self._counts)

  def count_not_judged(self, outcome: str) -> None:
    """Counts an accepted example without a result.

    Args:
      outcome: 'error', 'timeout' or 'disconnect'.
    """
    self._examples.labels(outcome).inc()

  def exposition(self) -> bytes:
    """Returns all metrics in the format CONTENT_TYPE."""
    return prometheus_client.generate_latest(self.registry)


class _CurrentValues(Collector):
  """Reads queue lengths and engine counters when the metrics are scraped."""

  def __init__(self, worker, engine_counts):
    self._worker, self._engine_counts = worker, engine_counts

  def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    """Yields the current values at each scrape."""
    num_queued, num_in_flight = self._worker.counts()
    yield GaugeMetricFamily('grm_queue_depth', 'Queued examples.', num_queued)
    yield GaugeMetricFamily(
      'grm_in_flight', 'Examples that are being judged.', num_in_flight
    )
    counts = self._engine_counts()
    for name, help_text in _ENGINE_COUNTERS.items():
      yield CounterMetricFamily(f'grm_engine_{name}', help_text, counts[name])
