"""Tests the page in a headless Chromium, driven by Playwright.

Run them with `make page`. A Chromium or Chrome must be on the PATH.
"""

import json
import pathlib
import re
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from grm_jax.judgement.verdict import VoteConfig
from tests.judges.fake import RuleMeta
from tests.judges.fake import judge as rule_judge
from tests.serving.fake import PacedJudge, listening, make_service

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
ARGUMENTS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]
# Texts of the page.
BEST = 'Best: response {}'
DONE = '{} judgements in'
VOTES = '{} judgements'
WAITING = 'Waiting for {}'
SO_FAR = '{} of {}'
STOPPED = re.compile('stopped', re.IGNORECASE)
COPIED = re.compile('copied', re.IGNORECASE)
TOKEN_ERROR = re.compile(r'\btoken\b')
SELECTED = 'selected by the meta RM'
ORDER = 'the order '
SCRIPT_INJECTION = (
  '<img src=x onerror="window.owned = 1"><script>window.owned = 1</script>'
)


@pytest.fixture(scope='module')
def browser():
  path = next(filter(None, map(shutil.which, BROWSERS)), None)
  assert path, f'found none of {BROWSERS} on the PATH; install one'
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
    yield browser
    browser.close()


@pytest.fixture(scope='module')
def address():
  judge = rule_judge(vote='guided', k_meta=2, meta=RuleMeta())
  vote_config = VoteConfig('guided', 2)
  with listening(
    make_service(judge.stream, has_meta=True, voting=vote_config)
  ) as url:
    yield url


def open_page(browser, address, **context):
  """Opens the page and collects the errors of the browser in page.errors."""
  context = browser.new_context(**context)
  page = context.new_page()
  page.errors = []
  page.on('pageerror', lambda error: page.errors.append(str(error)))
  page.on(
    'console',
    lambda message: (
      message.type == 'error' and page.errors.append(message.text)
    ),
  )
  page.goto(address)
  expect(page.locator('#about')).to_contain_text('fake')
  return page


def status(page):
  return page.get_by_role('status')


def judge_responses(page, *responses, query='q', k=4):
  page.get_by_label('Query').fill(query)
  while page.locator('#responses textarea').count() > len(responses):
    page.get_by_role('button', name='Remove the last response').click()
  while page.locator('#responses textarea').count() < len(responses):
    page.get_by_role('button', name='Add a response').click()
  for i, text in enumerate(responses, 1):
    page.get_by_label(f'Response {i}').fill(text)
  page.get_by_role('spinbutton', name='Judgements').fill(str(k))
  page.get_by_role('button', name='Judge', exact=True).click()


def test_shows_judgements_votes_and_meta_rm_selection(browser, address):
  page = open_page(browser, address)
  judge_responses(page, 'x 3', 'y 4', k=4)
  expect(status(page)).to_contain_text(BEST.format(2))
  expect(status(page)).to_contain_text(DONE.format(4))
  expect(page.get_by_role('heading', name=VOTES.format(2))).to_be_visible()
  bars = page.locator('#bars li')
  expect(bars).to_have_count(2)
  expect(bars.nth(0)).to_contain_text('Response 1')
  expect(bars.nth(0)).to_contain_text('6')
  expect(bars.nth(1)).to_contain_text('Response 2')
  expect(bars.nth(1)).to_contain_text('best')
  expect(bars.nth(1)).to_contain_text('8')
  samples = page.get_by_role('article')
  expect(samples).to_have_count(4)
  for text in ('response 1: 3', 'response 2: 4'):
    expect(samples.nth(2)).to_contain_text(text)
  orders = [x.split(ORDER)[1][:4] for x in samples.all_inner_texts()]
  assert set(orders) == {'1, 2', '2, 1'}
  selected = [x for x in samples.all_inner_texts() if SELECTED in x]
  assert len(selected) == page.locator('article.counted').count() == 2
  assert not page.errors


def test_judgements_stream_in_and_can_be_stopped(browser):
  judge = PacedJudge()
  with listening(make_service(judge)) as address:
    page = open_page(browser, address)
    judge_responses(page, 'x 3', 'y 4', k=3)
    expect(status(page)).to_contain_text(WAITING.format(3))
    judge.allow(1)
    expect(page.get_by_role('article')).to_have_count(1)
    sample = page.get_by_role('article').first
    expect(sample.get_by_role('heading', name='Principles')).to_be_visible()
    expect(sample.get_by_role('heading', name='Critique')).to_be_visible()
    expect(status(page)).to_contain_text(SO_FAR.format(1, 3))
    page.get_by_role('button', name='Stop').click()
    expect(status(page)).to_have_text(STOPPED)
    for _ in range(500):
      if judge.cancelled:
        break
      page.wait_for_timeout(20)
    assert judge.cancelled == [0]
    judge.allow()
    page.get_by_role('button', name='Judge', exact=True).click()
    expect(status(page)).to_contain_text(DONE.format(3))
    assert not page.errors


def test_keyboard_navigation(browser, address):
  page = open_page(browser, address)
  page.get_by_label('Example').focus()
  page.keyboard.press('ArrowDown')  # the next example
  expect(page.locator('#responses textarea')).to_have_count(3)
  page.keyboard.press('Tab')
  assert page.evaluate('document.activeElement.id') == 'query'
  page.keyboard.press('Control+A')
  page.keyboard.type('What?')
  for text in ('a 1', 'b 2', 'c 9'):
    page.keyboard.press('Tab')
    page.keyboard.press('Control+A')
    page.keyboard.type(text)
  page.keyboard.press('Control+Enter')
  expect(status(page)).to_contain_text(BEST.format(3))
  assert not page.errors


def test_every_control_has_an_accessible_name(browser, address):
  page = open_page(browser, address)
  unnamed = page.evaluate(
    """() => [...document.querySelectorAll('input, select, textarea, button')]
      .filter((x) => !(x.labels?.length || x.textContent.trim()))
      .map((x) => x.id)"""
  )
  assert unnamed == []
  assert page.locator('html').get_attribute('lang') == 'en'
  assert page.get_by_role('heading', level=1).count() == 1
  assert page.locator('[aria-live=polite]').count() == 1


def test_texts_are_not_interpreted_as_html(browser, address):
  page = open_page(browser, address)
  judge_responses(
    page,
    f'{SCRIPT_INJECTION} 3',
    f'{SCRIPT_INJECTION} 4',
    query=SCRIPT_INJECTION,
  )
  expect(status(page)).to_contain_text(BEST.format(2))
  assert page.evaluate('window.owned') is None
  assert page.locator('main img').count() == 0
  assert not page.errors


def test_shows_error_of_the_service(browser, address):
  page = open_page(browser, address)
  judge_responses(page, 'x' * 6000)
  expect(status(page)).to_contain_text('5000')
  judge_responses(page, 'x 3')
  expect(status(page)).to_contain_text(BEST.format(1))


def test_asks_for_token_if_required(browser):
  judge = PacedJudge()
  judge.allow()
  with listening(make_service(judge, token='secret')) as address:
    page = browser.new_page()
    page.goto(address)
    page.get_by_label('Token').fill('wrong')
    judge_responses(page, 'x 3')
    expect(status(page)).to_contain_text(TOKEN_ERROR)
    page.get_by_label('Token').fill('secret')
    judge_responses(page, 'x 3')
    expect(status(page)).to_contain_text(BEST.format(1))


def test_copies_result_as_json(browser, address):
  page = open_page(
    browser, address, permissions=['clipboard-read', 'clipboard-write']
  )
  judge_responses(page, 'x 3', 'y 4', k=2)
  expect(status(page)).to_contain_text(DONE.format(2))
  page.get_by_role('button', name='Copy as JSON').click()
  expect(status(page)).to_have_text(COPIED)
  copied = json.loads(page.evaluate('navigator.clipboard.readText()'))
  assert copied['votes'] == [6, 8] and len(copied['samples']) == 2


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [360, 1200])
def test_page_fits_and_has_contrast(browser, address, scheme, width, tmp_path):
  """No horizontal scrolling, and contrast of at least 4.5 (WCAG AA)."""
  page = open_page(
    browser,
    address,
    viewport={'width': width, 'height': 800},
    color_scheme=scheme,
  )
  judge_responses(page, f'{"long" * 60} 3', 'y 4', k=2)
  expect(status(page)).to_contain_text(DONE.format(2))
  assert page.evaluate(
    'document.documentElement.scrollWidth <= window.innerWidth'
  )
  for name in ('ink', 'faint', 'mark', 'best', 'bad'):
    assert contrast(page, name, 'ground') >= 4.5, name
  assert contrast(page, 'on-mark', 'mark') >= 4.5
  screenshot = pathlib.Path(tmp_path / f'{scheme}-{width}.png')
  page.screenshot(path=screenshot, full_page=True)
  print(f'screenshot -> {screenshot}')
  assert not page.errors


def contrast(page, *names):
  """Returns the WCAG 2 contrast ratio of two colour variables of the CSS."""
  luminances = []
  for name in names:
    text = page.evaluate(
      'n => getComputedStyle(document.documentElement).getPropertyValue(n)',
      f'--{name}',
    ).strip()
    digits = text[1:] if len(text) == 7 else ''.join(2 * x for x in text[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [
      x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4
      for x in channels
    ]
    weights = (0.2126, 0.7152, 0.0722)
    luminances.append(sum(w * x for w, x in zip(weights, linear, strict=True)))
  return (max(luminances) + 0.05) / (min(luminances) + 0.05)
