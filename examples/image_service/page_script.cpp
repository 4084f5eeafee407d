// SPDX-License-Identifier: BSL-1.0
#include "page.hpp"

namespace image_service {

std::string_view script() {
  return R"js('use strict';

const byId = (id) => document.getElementById(id);
const answer = byId('answer');

// --- The pool's state, once a second while somebody looks ------------------------------------------------------------

let crashesShown = null;

function showHull(state) {
  const hull = byId('hull');
  while (hull.children.length > state.workers) hull.lastChild.remove();
  while (hull.children.length < state.workers) hull.append(document.createElement('span'));
  [...hull.children].forEach((cell, i) => cell.classList.toggle('busy', i < state.running));
  if (crashesShown !== null && state.workers_crashed > crashesShown && hull.lastChild) {
    const cell = hull.lastChild;
    cell.classList.add('flooded');
    cell.addEventListener('animationend', () => cell.classList.remove('flooded'), {once: true});
  }
  crashesShown = state.workers_crashed;
}

function showState(state) {
  for (const name of ['workers', 'pending', 'running', 'completed', 'workers_crashed']) {
    byId(name).textContent = state[name].toLocaleString('en');
  }
  byId('workers_crashed').classList.toggle('alarm', state.workers_crashed > 0);
  byId('average_run_ms').innerHTML = '<span></span> <small>ms</small>';
  byId('average_run_ms').firstChild.textContent = state.average_run_ms.toFixed(1);
  showHull(state);
}

async function readState() {
  const response = await fetch('/state', {cache: 'no-store', signal: AbortSignal.timeout(5000)});
  if (!response.ok) throw new Error(`${response.status}`);
  const state = await response.json();
  showState(state);
  return state;
}

let lostSince = null;

async function watch() {
  const offline = byId('offline');
  try {
    if (!document.hidden) await readState();
    lostSince = null;
    offline.hidden = true;
  } catch {
    if (lostSince === null) {
      lostSince = new Date();
      offline.textContent = `The server has not answered since ${lostSince.toLocaleTimeString()}. Trying again…`;
    }
    offline.hidden = false;
  }
  setTimeout(watch, 1000);
}

// --- Sending a picture -----------------------------------------------------------------------------------------------

function say(kind, head, text) {
  const line = document.createElement('p');
  const strong = document.createElement('strong');
  line.className = kind;
  strong.textContent = head;
  line.append(strong, ' ', text);
  answer.append(line);
}

// Posts a picture; gives the answer, and how long it took.
async function post(picture) {
  const begin = performance.now();
  const response = await fetch('/thumb?width=640', {method: 'POST', body: picture});
  const blob = await response.blob();
  const took = `${(performance.now() - begin).toFixed(0)} ms`;
  const refusal = response.ok ? null : JSON.parse(await blob.text());
  return {status: response.status, ok: response.ok, blob, took, refusal};
}

async function sendPicture(file) {
  answer.replaceChildren();
  try {
    const reply = await post(file);
    if (!reply.ok) {
      say('bad', `${reply.status}`, reply.refusal.error);
      return;
    }
    const image = new Image();
    image.alt = `Thumbnail of ${file.name}`;
    image.src = URL.createObjectURL(reply.blob);
    await image.decode();
    URL.revokeObjectURL(image.src);
    const size = `${image.naturalWidth} × ${image.naturalHeight} pixels`;
    say('good', '200', `${file.name}: ${size}, answered in ${reply.took}.`);
    answer.append(image);
  } catch (error) {
    say('bad', 'No answer.', error.message);
  }
}

byId('file').addEventListener('change', (event) => {
  if (event.target.files.length > 0) sendPicture(event.target.files[0]);
  event.target.value = '';  // so that the same file can be chosen again
});

const drop = byId('drop');
for (const type of ['dragenter', 'dragover']) {
  drop.addEventListener(type, (event) => { event.preventDefault(); drop.classList.add('over'); });
}
for (const type of ['dragleave', 'drop']) {
  drop.addEventListener(type, () => drop.classList.remove('over'));
}
drop.addEventListener('drop', (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length > 0) sendPicture(event.dataTransfer.files[0]);
});

// --- Crashing a decoder or taking it over, and showing that nothing else was hit -------------------------------------

// Makes a thumbnail anew in the pool (the number at the end keeps caches out of it) and shows it.
async function remake(image, number) {
  const fresh = new Image();
  fresh.src = `${image.getAttribute('src').split('&')[0]}&again=${number}`;
  await fresh.decode();
  image.removeAttribute('srcset');
  image.src = fresh.src;
}

// A worker that is being replaced is missing for some milliseconds.
async function wholeState(workers) {
  let state = await readState();
  for (let tries = 0; state.workers < workers && tries < 20; ++tries) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    state = await readState();
  }
  return state;
}

async function harm(button, samples) {
  button.disabled = true;
  answer.replaceChildren();
  try {
    const before = await readState();
    for (const sample of samples) {
      const hostile = await (await fetch(`/samples/${sample}.blk`)).blob();
      const reply = await post(hostile);
      const {signal = '', error = ''} = reply.refusal ?? {};
      say('bad', `${reply.status} ${signal}`, `${error} Answered in ${reply.took}.`);
    }

    const begin = performance.now();
    const images = [...document.querySelectorAll('.card img')].slice(0, 12);
    const results = await Promise.allSettled(images.map((image) => remake(image, Date.now())));
    const made = results.filter((result) => result.status === 'fulfilled').length;
    const took = (performance.now() - begin).toFixed(0);
    const after = await wholeState(before.workers);
    const whole = made === images.length && after.workers >= before.workers;
    say(whole ? 'good' : 'bad', whole ? 'Still afloat.' : 'Something is wrong.',
        `${made} of ${images.length} thumbnails made anew in ${took} ms; ` +
        `${after.workers} of ${before.workers} workers are there.`);
  } catch (error) {
    say('bad', 'No answer.', error.message);
  }
  button.disabled = false;
}
byId('crash').addEventListener('click', (event) => harm(event.currentTarget, ['hostile']));
byId('attack').addEventListener('click', (event) => harm(event.currentTarget, ['escape', 'execute']));

// --- Thumbnails that failed, because the pool was full, get a second and a third chance ------------------------------

document.addEventListener('error', (event) => {
  const image = event.target;
  if (!(image instanceof HTMLImageElement) || !image.closest('.card')) return;
  const tries = Number(image.dataset.tries ?? 0) + 1;
  image.dataset.tries = tries;
  image.classList.toggle('failed', tries > 3);
  if (tries <= 3) setTimeout(() => remake(image, Date.now()).catch(() => image.classList.add('failed')), 1000 * tries);
}, true);

watch();
)js";
}

}  // namespace image_service
