// The page at /: requests judgements from /v1/score and shows them as they
// arrive. Texts of users and models are inserted as text, never as markup.
'use strict';

const EXAMPLES = [
  {
    name: 'a sum',
    query: 'What is 17 + 26?',
    responses: ['17 + 26 = 43.', '17 + 26 = 33.'],
  },
  {
    name: 'letters',
    query: 'How many times does the letter r occur in "strawberry"?',
    responses: ['Twice.', 'Three times: st-r-awbe-r-r-y.', 'Once.'],
  },
  {
    name: 'tides',
    query: 'Why are there two high tides a day?',
    responses: [
      'The Moon pulls the near side more than the Earth, and the Earth more ' +
        'than the far side: the sea bulges on both, and the Earth turns below.',
      'Because the Sun heats the sea twice.',
    ],
  },
];
const MIN_RESPONSES = 1;
let maxResponses = 4;
let abortController = null; // of the current request; null if there is none
let result = null; // the last result, for copying

const byId = (id) => document.getElementById(id);

/** Returns a new element that contains a text. */
function makeElement(tag, text = '', className = '') {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

function responseBoxes() {
  return [...document.querySelectorAll('#responses textarea')];
}

function addResponse(text = '') {
  const number = responseBoxes().length + 1;
  const item = makeElement('p');
  const label = makeElement('label', `Response ${number}`);
  const box = makeElement('textarea');
  box.id = `response-${number}`;
  label.htmlFor = box.id;
  box.rows = 3;
  box.required = true;
  box.value = text;
  item.append(label, box);
  byId('responses').append(item);
  updateResponseButtons();
  return box;
}

function removeResponse() {
  byId('responses').lastElementChild.remove();
  updateResponseButtons();
}

function updateResponseButtons() {
  byId('add').disabled = responseBoxes().length >= maxResponses;
  byId('remove').disabled = responseBoxes().length <= MIN_RESPONSES;
}

function fillForm(example) {
  byId('query').value = example.query;
  byId('responses').replaceChildren();
  example.responses.forEach((text) => addResponse(text));
}

function setStatus(text, isError = false) {
  byId('status').textContent = text;
  byId('status').className = isError ? 'error' : '';
}

function authHeaders() {
  const token = byId('token').value;
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** Returns the body of a score request. */
function readForm() {
  return {
    query: byId('query').value,
    responses: responseBoxes().map((box) => box.value),
    k: Number(byId('k').value),
    temperature: Number(byId('temperature').value),
    order: byId('order').value,
    stream: true,
  };
}

/** Yields {event, data} of a stream of server-sent events. */
async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = ''; // the incomplete event at the end
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (buffer + value).split('\n\n');
    buffer = blocks.pop();
    for (const block of blocks) {
      const [event, data] = block.split('\n');
      yield {
        event: event.replace('event: ', ''),
        data: JSON.parse(data.replace('data: ', '')),
      };
    }
  }
}

/** Returns the message of an error response. */
async function errorMessage(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `the server responded with status ${response.status}`;
  }
}

async function judge() {
  if (abortController) return;
  const request = readForm();
  clearResult();
  abortController = new AbortController();
  setBusy(true);
  setStatus(`Waiting for ${request.k} judgements.`);
  try {
    const response = await fetch('v1/score', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', ...authHeaders() },
      body: JSON.stringify(request),
      signal: abortController.signal,
    });
    if (response.status === 401) byId('token-row').hidden = false;
    if (!response.ok) throw new Error(await errorMessage(response));
    await showEvents(request, response.body);
  } catch (error) {
    const stopped = error.name === 'AbortError';
    setStatus(stopped ? 'Stopped.' : `Failed: ${error.message}`, !stopped);
  } finally {
    abortController = null;
    setBusy(false);
  }
}

async function showEvents(request, stream) {
  const samples = [];
  for await (const { event, data } of readEvents(stream)) {
    if (event === 'error') throw new Error(data.error);
    if (event === 'sample') {
      samples.push(data);
      showSample(data);
      const votes = sumScores(samples, request.responses.length);
      showVotes(votes, [], samples.length);
      setStatus(`${samples.length} of ${request.k} judgements.`);
    } else {
      result = data;
      showResult(data, request.k);
      return;
    }
  }
  throw new Error('the connection was closed before the result arrived');
}

/** Returns the votes so far: sums of the scores that parse. */
function sumScores(samples, count) {
  const parsed = samples.filter((sample) => sample.scores);
  if (!parsed.length) return null;
  return Array.from({ length: count }, (_, i) =>
    parsed.reduce((sum, sample) => sum + sample.scores[i], 0));
}

function showResult(data, k) {
  byId('samples').replaceChildren();
  data.samples.forEach((sample) =>
    showSample(sample, data.counted.includes(sample.place)));
  showVotes(data.votes, data.winners, data.counted.length);
  byId('copy').disabled = false;
  const failures = data.failures ? `; ${data.failures} do not parse` : '';
  const best = data.winners.map((i) => `response ${i + 1}`).join(' and ');
  const winner = data.votes ? `Best: ${best}` : 'No judgement parses';
  const seconds = data.timings.seconds.toFixed(1);
  setStatus(`${winner}. ${k} judgements in ${seconds} s${failures}.`);
}

function showVotes(votes, winners, counted) {
  byId('votes').hidden = false;
  byId('votes-title').textContent =
    `Votes of ${counted} judgement${counted === 1 ? '' : 's'}`;
  const maxVote = Math.max(1e-9, ...(votes || [0]));
  byId('bars').replaceChildren(...(votes || []).map((vote, i) => {
    const item = makeElement('li');
    const best = winners.includes(i);
    const name = makeElement('div', '', best ? 'name best' : 'name');
    name.append(
      makeElement('span', `Response ${i + 1}${best ? ' (best)' : ''}`),
      makeElement('span', String(vote)));
    const track = makeElement('div', '', 'track');
    track.setAttribute('aria-hidden', 'true'); // screen readers read the number
    const bar = makeElement('div', '', 'fill');
    bar.style.width = `${Math.max(0, 100 * vote / maxVote)}%`;
    track.append(bar);
    item.append(name, track);
    return item;
  }));
}

function showSample(sample, counted = false) {
  byId('judged').hidden = false;
  const box = makeElement('article', '', counted ? 'counted' : '');
  const title = makeElement('h3', `Judgement ${sample.place + 1}`);
  title.id = `judgement-${sample.place}`;
  box.setAttribute('aria-labelledby', title.id);
  box.append(title, makeElement('p', describeSample(sample, counted), 'facts'));
  for (const [name, text] of [
    ['Principles', sample.principles],
    ['Critique', sample.critique],
  ]) {
    if (text) box.append(makeElement('h4', name), makeElement('pre', text));
  }
  const hasSections = sample.principles || sample.critique;
  if (!hasSections) {
    box.append(
      makeElement('h4', 'Generation'), makeElement('pre', sample.text));
  }
  byId('samples').append(box);
}

function describeSample(sample, counted) {
  const order = sample.order.map((i) => i + 1).join(', ');
  const scores = sample.scores
    ? sample.scores.map((x, i) => `response ${i + 1}: ${x}`).join(', ')
    : 'do not parse';
  const facts = [`Scores: ${scores}`, `shown in the order ${order}`];
  if (sample.meta !== null) facts.push(`meta RM ${sample.meta.toFixed(2)}`);
  if (sample.meta !== null && counted) facts.push('selected by the meta RM');
  if (sample.finish === 'length') facts.push('truncated');
  return facts.join(' · ');
}

function clearResult() {
  result = null;
  byId('copy').disabled = true;
  for (const id of ['bars', 'samples']) byId(id).replaceChildren();
  for (const id of ['votes', 'judged']) byId(id).hidden = true;
}

function setBusy(busy) {
  byId('judge').disabled = busy;
  byId('stop').disabled = !busy;
}

async function copyResult() {
  const text = JSON.stringify(result, null, 2);
  try {
    await navigator.clipboard.writeText(text);
    setStatus('Copied.');
  } catch {
    setStatus('The browser does not allow copying on this page.', true);
  }
}

/** Reads defaults and limits; shows the token field if one is required. */
async function loadAbout() {
  const response = await fetch('v1/about', { headers: authHeaders() });
  if (response.status === 401) {
    byId('token-row').hidden = false;
    return;
  }
  if (!response.ok) return;
  const info = await response.json();
  maxResponses = Math.min(4, info.limits.responses);
  updateResponseButtons();
  byId('k').max = info.limits.k;
  byId('k').value = Math.max(1, info.defaults.k);
  byId('temperature').value = info.defaults.temperature;
  byId('order').value = info.defaults.order;
  const meta = info.meta_checkpoint ? `, meta RM ${info.meta_checkpoint}` : '';
  byId('about').textContent =
    `A generative reward model (${info.checkpoint}${meta}) writes ` +
    'principles, a critique and a score for each response.';
}

EXAMPLES.forEach((example, i) => {
  const option = makeElement('option', example.name);
  option.value = i;
  byId('example').append(option);
});
byId('example').addEventListener('change', (event) =>
  fillForm(EXAMPLES[event.target.value]));
byId('add').addEventListener('click', () => addResponse().focus());
byId('remove').addEventListener('click', removeResponse);
byId('stop').addEventListener('click', () => abortController?.abort());
byId('copy').addEventListener('click', copyResult);
byId('token').addEventListener('change', loadAbout);
byId('form').addEventListener('submit', (event) => {
  event.preventDefault();
  judge();
});
byId('form').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
    byId('form').requestSubmit();
  }
});
byId('temperature').value = 0.5;
fillForm(EXAMPLES[0]);
loadAbout().catch(() => setStatus('Cannot reach the server.', true));
