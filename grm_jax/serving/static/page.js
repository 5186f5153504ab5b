// The page at /: asks /v1/score for judgements and shows them as they arrive.
// All that is shown of users and models is text, never markup.
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
const FEWEST = 1;
let most = 4;
let running = null; // the AbortController of what is asked now
let answer = null; // all that came, for copying

const find = (id) => document.getElementById(id);

/** An element with text in it. */
function made(tag, text = '', name = '') {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
}

function boxes() {
  return [...document.querySelectorAll('#responses textarea')];
}

function addResponse(text = '') {
  const number = boxes().length + 1;
  const line = made('p');
  const label = made('label', `Response ${number}`);
  const box = made('textarea');
  box.id = `response-${number}`;
  label.htmlFor = box.id;
  box.rows = 3;
  box.required = true;
  box.value = text;
  line.append(label, box);
  find('responses').append(line);
  countResponses();
  return box;
}

function removeResponse() {
  find('responses').lastElementChild.remove();
  countResponses();
}

function countResponses() {
  find('add').disabled = boxes().length >= most;
  find('remove').disabled = boxes().length <= FEWEST;
}

function fill(example) {
  find('query').value = example.query;
  find('responses').replaceChildren();
  example.responses.forEach((text) => addResponse(text));
}

function say(text, bad = false) {
  find('status').textContent = text;
  find('status').className = bad ? 'error' : '';
}

function headers() {
  const token = find('token').value;
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** What the form asks for. */
function request() {
  return {
    query: find('query').value,
    responses: boxes().map((box) => box.value),
    k: Number(find('k').value),
    temperature: Number(find('temperature').value),
    order: find('order').value,
    stream: true,
  };
}

/** {event, data} of a stream of server-sent events. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let left = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (left + value).split('\n\n');
    left = blocks.pop();
    for (const block of blocks) {
      const [event, data] = block.split('\n');
      yield {
        event: event.replace('event: ', ''),
        data: JSON.parse(data.replace('data: ', '')),
      };
    }
  }
}

/** The words of a refusal. */
async function refusal(reply) {
  try {
    return (await reply.json()).error;
  } catch {
    return `the server answers ${reply.status}`;
  }
}

async function judge() {
  if (running) return;
  const asked = request();
  clear();
  running = new AbortController();
  working(true);
  say(`Waiting for ${asked.k} judgements.`);
  try {
    const reply = await fetch('v1/score', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', ...headers() },
      body: JSON.stringify(asked),
      signal: running.signal,
    });
    if (reply.status === 401) find('bearer').hidden = false;
    if (!reply.ok) throw new Error(await refusal(reply));
    await show(asked, reply.body);
  } catch (error) {
    const stopped = error.name === 'AbortError';
    say(stopped ? 'Stopped.' : `No answer: ${error.message}`, !stopped);
  } finally {
    running = null;
    working(false);
  }
}

async function show(asked, stream) {
  const samples = [];
  for await (const { event, data } of events(stream)) {
    if (event === 'error') throw new Error(data.error);
    if (event === 'sample') {
      samples.push(data);
      showSample(data);
      showVotes(sums(samples, asked.responses.length), [], samples.length);
      say(`${samples.length} of ${asked.k} judgements.`);
    } else {
      answer = data;
      finish(data, asked.k);
      return;
    }
  }
  throw new Error('the connection has ended before the answer');
}

/** What the votes are so far: sums of scores that parse. */
function sums(samples, count) {
  const parsed = samples.filter((sample) => sample.scores);
  if (!parsed.length) return null;
  return Array.from({ length: count }, (_, i) =>
    parsed.reduce((sum, sample) => sum + sample.scores[i], 0));
}

function finish(data, k) {
  find('samples').replaceChildren();
  data.samples.forEach((sample) =>
    showSample(sample, data.counted.includes(sample.place)));
  showVotes(data.votes, data.winners, data.counted.length);
  find('copy').disabled = false;
  const failed = data.failures ? `; ${data.failures} do not parse` : '';
  const best = data.winners.map((i) => `response ${i + 1}`).join(' and ');
  const won = data.votes ? `Best: ${best}` : 'No judgement parses';
  say(`${won}. ${k} judgements in ${data.timings.seconds.toFixed(1)} s` +
    `${failed}.`);
}

function showVotes(votes, winners, counted) {
  find('votes').hidden = false;
  find('votes-title').textContent =
    `Votes of ${counted} judgement${counted === 1 ? '' : 's'}`;
  const top = Math.max(1e-9, ...(votes || [0]));
  find('bars').replaceChildren(...(votes || []).map((vote, i) => {
    const line = made('li');
    const best = winners.includes(i);
    const name = made('div', '', best ? 'name best' : 'name');
    name.append(
      made('span', `Response ${i + 1}${best ? ' (best)' : ''}`),
      made('span', String(vote)));
    const track = made('div', '', 'track');
    track.setAttribute('aria-hidden', 'true'); // the number says it
    const bar = made('div', '', 'fill');
    bar.style.width = `${Math.max(0, 100 * vote / top)}%`;
    track.append(bar);
    line.append(name, track);
    return line;
  }));
}

function showSample(sample, counted = false) {
  find('judged').hidden = false;
  const box = made('article', '', counted ? 'counted' : '');
  const title = made('h3', `Judgement ${sample.place + 1}`);
  title.id = `judgement-${sample.place}`;
  box.setAttribute('aria-labelledby', title.id);
  box.append(title, made('p', facts(sample, counted), 'facts'));
  for (const [name, text] of [
    ['Principles', sample.principles],
    ['Critique', sample.critique],
  ]) {
    if (text) box.append(made('h4', name), made('pre', text));
  }
  const parts = sample.principles + sample.critique;
  if (!parts) box.append(made('h4', 'Written'), made('pre', sample.text));
  find('samples').append(box);
}

function facts(sample, counted) {
  const shown = sample.order.map((i) => i + 1).join(', ');
  const scores = sample.scores
    ? sample.scores.map((x, i) => `response ${i + 1}: ${x}`).join(', ')
    : 'do not parse';
  const parts = [`Scores: ${scores}`, `shown in the order ${shown}`];
  if (sample.meta !== null) parts.push(`meta RM ${sample.meta.toFixed(2)}`);
  if (sample.meta !== null && counted) parts.push('picked by the meta RM');
  if (sample.finish === 'length') parts.push('cut off');
  return parts.join(' · ');
}

function clear() {
  answer = null;
  find('copy').disabled = true;
  for (const id of ['bars', 'samples']) find(id).replaceChildren();
  for (const id of ['votes', 'judged']) find(id).hidden = true;
}

function working(yes) {
  find('judge').disabled = yes;
  find('stop').disabled = !yes;
}

async function copy() {
  const text = JSON.stringify(answer, null, 2);
  try {
    await navigator.clipboard.writeText(text);
    say('Copied.');
  } catch {
    say('The browser does not allow copying here.', true);
  }
}

/** What this server serves and allows; asks for its token if it has one. */
async function about() {
  const reply = await fetch('v1/about', { headers: headers() });
  if (reply.status === 401) {
    find('bearer').hidden = false;
    return;
  }
  if (!reply.ok) return;
  const found = await reply.json();
  most = Math.min(4, found.limits.responses);
  countResponses();
  find('k').max = found.limits.k;
  find('k').value = Math.max(1, found.defaults.k);
  find('temperature').value = found.defaults.temperature;
  find('order').value = found.defaults.order;
  const meta = found.meta_checkpoint ? `, meta RM ${found.meta_checkpoint}` : '';
  find('about').textContent =
    `A generative reward model (${found.checkpoint}${meta}) writes ` +
    'principles, a critique and a score for each response.';
}

EXAMPLES.forEach((example, i) => {
  const option = made('option', example.name);
  option.value = i;
  find('example').append(option);
});
find('example').addEventListener('change', (event) =>
  fill(EXAMPLES[event.target.value]));
find('add').addEventListener('click', () => addResponse().focus());
find('remove').addEventListener('click', removeResponse);
find('stop').addEventListener('click', () => running?.abort());
find('copy').addEventListener('click', copy);
find('token').addEventListener('change', about);
find('ask').addEventListener('submit', (event) => {
  event.preventDefault();
  judge();
});
find('ask').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
    find('ask').requestSubmit();
  }
});
find('temperature').value = 0.5;
fill(EXAMPLES[0]);
about().catch(() => say('The server cannot be reached.', true));
