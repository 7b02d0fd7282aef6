// Reads a code with the camera into the field beside the button. Pictures are read in a worker of their own, which lives as long
// as the dialog: whatever a picture makes of it, nothing else stops.

import {el, setText} from './dom.js';

const CAMERA = {audio: false, video: {facingMode: 'environment', width: {ideal: 1920}, height: {ideal: 1080}}};
// What is read of a picture: its middle, at most so many pixels a side.
const SIDE_MAX = 1080;
// A picture that takes longer is given up, and the camera after so many in a row.
const PICTURE_MAX_MS = 5000;
const FAILURES_MAX = 3;

const REFUSALS = {
  NotAllowedError: 'The camera may not be used here: it was refused, now or in the browser’s settings.',
  NotFoundError: 'There is no camera here.',
  NotReadableError: 'The camera is in use elsewhere, or does not answer.',
};

export function bindScanners() {
  for (const button of document.querySelectorAll('[data-scan]')) {
    button.addEventListener('click', () => scan(el(button.dataset.scan)));
  }
}

// Opens the dialog. A code that fits the field is handed in with its form, as if it had been pasted.
async function scan(field) {
  const closing = new AbortController();
  const {signal} = closing;
  el('scan-picture').hidden = true;
  setText(el('scan-state'), 'The browser may ask whether this page may use the camera.');
  el('scan').addEventListener('close', () => closing.abort(), {once: true});
  el('scan').showModal();
  const text = await readFromCamera(new RegExp(field.dataset.code), signal).catch((error) => {
    if (!signal.aborted) {
      el('scan-picture').hidden = true;
      setText(el('scan-state'), `${REFUSALS[error.name] ?? `The camera cannot be used: ${error.message}.`} Paste the text of the code instead.`);
    }
  });
  if (text && !signal.aborted) {
    el('scan').close();
    field.value = text;
    field.form.requestSubmit();
  }
}

// Resolves to the first text that fits, or to nothing when `signal` says to stop; then the camera is off.
async function readFromCamera(fits, signal) {
  // A page that may not ask has no such thing.
  const stream = await navigator.mediaDevices?.getUserMedia(CAMERA) ?? Promise.reject(new DOMException('', 'NotFoundError'));
  const reader = new Reader();
  const picture = el('scan-picture');
  const stop = () => {
    reader.end();
    stream.getTracks().forEach((track) => track.stop());
  };
  signal.addEventListener('abort', stop);
  try {
    signal.throwIfAborted();
    picture.srcObject = stream;
    picture.hidden = false;
    setText(el('scan-state'), 'Hold the whole code into the picture, as large as it goes.');
    await picture.play();
    for (;;) {
      const text = await reader.read(await middleOf(picture));
      signal.throwIfAborted();
      if (text && fits.test(text)) {
        return text;
      }
      if (text) {
        setText(el('scan-state'), 'That is a code for something else.');
      }
    }
  } finally {
    stop();
  }
}

// The next picture, as it is seen in the dialog.
async function middleOf(picture) {
  await new Promise(requestAnimationFrame);
  const [width, height] = [picture.videoWidth, picture.videoHeight];
  const side = Math.min(width, height);
  const kept = Math.min(side, SIDE_MAX);
  return createImageBitmap(picture, Math.floor((width - side) / 2), Math.floor((height - side) / 2), side, side, {resizeWidth: kept, resizeHeight: kept});
}

// What reads pictures, one after the other. A worker that fails, or takes too long, is replaced.
class Reader {
  #worker = null;
  #failures = 0;

  // The text of a code in the picture, or null.
  async read(picture) {
    this.#worker ??= new Worker('/scanner.js', {type: 'module', name: 'waxwing-scanner'});
    const text = await this.#ask(picture);
    if (text !== undefined) {
      this.#failures = 0;
      return text;
    }
    this.end();
    this.#failures += 1;
    if (this.#failures === FAILURES_MAX) {
      throw new Error('what it sees cannot be read in this browser');
    }
    return null;
  }

  #ask(picture) {
    return new Promise((resolve) => {
      setTimeout(resolve, PICTURE_MAX_MS);
      this.#worker.onmessage = ({data}) => resolve(data);
      this.#worker.onerror = () => resolve(undefined);
      this.#worker.postMessage(picture, [picture]);
    });
  }

  end() {
    this.#worker?.terminate();
    this.#worker = null;
  }
}
