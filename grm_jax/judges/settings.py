"""Rules of the settings of judges; score, evaluate and serve share them."""

from grm_jax import settings
from grm_jax.judgement import (
  prompt_builder,
  prompt_format,
  response_order,
  temperature_range,
  verdict,
)
from grm_jax.judgement.prompt_format import MAX_SCORE
from grm_jax.model import compute_config
from grm_jax.sharding import mesh, rules
from grm_jax.unused_settings import Unused

# Leaves with which a model generates.
GENERATION = {
  'int8': settings.BOOLEAN,
  'concurrent_prompts': settings.parallel(1),
  'generations_per_prompt': settings.samples(1),
  'decode_steps_per_call': settings.parallel(1),
}
# config.sampling.
SAMPLING = GENERATION | {
  'weights': settings.one_of(*rules.WEIGHTS),
  'max_new_tokens': settings.tokens(0, note='0: as in training'),
  'prompt_buckets': settings.LENGTHS,
}
RESPONSE_ORDER = settings.one_of(*response_order.KINDS)
TOO_LONG = settings.one_of(*prompt_builder.TOO_LONG)
# Lowest and highest score.
SCORE_RANGE = settings.optional(
  settings.Rule(
    f'a tuple of the lowest and the highest score, from 0 to {MAX_SCORE}',
    prompt_format.is_score_range,
  ),
  'as in training',
)
TRUNCATED = settings.one_of(*prompt_format.TRUNCATED)
# config.prompt.reads of the stages that train a judge.
READS = settings.optional(
  settings.one_of(*prompt_format.READS), 'as in training'
)
# The rest of their config.prompt.
PROMPT = {
  'template': settings.TEXT,
  'single': settings.TEXT,
  'score_range': SCORE_RANGE,
  'too_long': TOO_LONG,
  'truncated': TRUNCATED,
}
JUDGE: dict[str, settings.Rule | settings.Rules] = {
  'checkpoint': settings.TEXT,
  'checkpoint_step': settings.STEP,
  'meta_checkpoint': settings.TEXT,
  'k': settings.samples(0, note='0: greedy only'),
  'temperature': temperature_range.SETTING,
  'response_order': RESPONSE_ORDER,
  'seed': settings.SEED,
  'prompt': {
    'template': settings.TEXT,
    'single': settings.TEXT,
    'score_range': SCORE_RANGE,
    'principles': settings.TEXT,
    'too_long': TOO_LONG,
    'extraction': settings.one_of(*prompt_format.EXTRACTIONS),
    'truncated': TRUNCATED,
    'meta': settings.TEXT,
  },
  'sampling': SAMPLING,
  'mesh': mesh.DECODE_SETTINGS,
  'compute': compute_config.JUDGE_SETTINGS,
}
# With the leaves of votes.
VOTING_JUDGE = JUDGE | {
  'vote': settings.optional(
    settings.one_of(*verdict.KINDS), 'guided with a meta RM, else sum'
  ),
  'k_meta': settings.samples(0, note='0: half of k'),
}

# Leaves of their config.prompt without effect, see unused_settings.py.
PROMPT_UNUSED = Unused(
  ('prompt.single', 'prompt.score_range'),
  '{key}.prompt.reads is not scores',
  lambda config: config.prompt.reads not in ('', 'scores'),
)
# Judges that read a query and its responses without a template.
WITHOUT_TEMPLATE = ('scalar', 'pair')
# Leaves of judging without effect, see unused_settings.py.
UNUSED = (
  Unused(
    (
      *('k', 'temperature', 'k_meta'),
      *('prompt.template', 'prompt.single', 'prompt.score_range'),
      *('prompt.principles', 'prompt.meta'),
      *('prompt.extraction', 'prompt.truncated'),
      *('sampling.weights', 'sampling.int8'),
      *('sampling.generations_per_prompt', 'sampling.decode_steps_per_call'),
    ),
    '{key}.judge is a model with a scalar head that generates nothing',
    lambda config: config.judge in WITHOUT_TEMPLATE,
  ),
  Unused(
    ('response_order',),
    '{key}.judge reads one response at a time',
    lambda config: config.judge in ('scalar', 'semi_scalar'),
  ),
  Unused(
    (
      *('prompt.single', 'prompt.score_range', 'prompt.principles'),
      *('prompt.extraction', 'prompt.truncated'),
    ),
    '{key}.judge=semi_scalar writes critiques without scores',
    lambda config: config.judge == 'semi_scalar',
  ),
  Unused(
    ('prompt.single', 'prompt.score_range', 'prompt.extraction'),
    '{key}.judge names the best response instead of writing scores',
    lambda config: config.judge in ('llm', 'token_probability'),
  ),
  *compute_config.UNUSED,
)
VALUE_MODEL_UNUSED = Unused(
  ('value_checkpoint',),
  '{key}.judge is not semi_scalar',
  lambda config: config.judge != 'semi_scalar',
)
GREEDY_UNUSED = Unused(
  ('temperature',),
  '{key}.k is 0, which is one greedy judgement',
  lambda config: not config.k,
)
