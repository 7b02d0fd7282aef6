// Dialogs, notices, and saving a file.

import {el, h, setText} from './dom.js';

const SHOWN_MS = {info: 5000, warn: 10_000};

export function bindDialogs() {
  for (const button of document.querySelectorAll('[data-close]')) {
    button.addEventListener('click', () => button.closest('dialog').close());
  }
  for (const dialog of document.querySelectorAll('dialog')) {
    // A click beside the dialog closes it.
    dialog.addEventListener('click', (event) => event.target === dialog && dialog.close());
  }
}

// Asks a question; resolves to whether the answer was yes.
export function ask(text, yes) {
  const dialog = el('confirm');
  setText(el('confirm-text'), text);
  setText(el('confirm-yes'), yes);
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), {once: true});
  });
}

// Shows a notice; an alarm stays until it is dismissed.
export function toast(level, text) {
  const element = h('div', {class: `toast is-${level}`, role: level === 'alarm' ? 'alert' : null, 'data-testid': 'notice', 'data-level': level},
    h('span', {}, text),
    h('button', {class: 'icon-button', type: 'button', 'aria-label': 'Dismiss', onclick: () => element.remove()}, '×'));
  el('toasts').append(element);
  if (SHOWN_MS[level]) {
    setTimeout(() => element.remove(), SHOWN_MS[level]);
  }
}

export function download(bytes, name) {
  const url = URL.createObjectURL(new Blob([bytes], {type: 'application/octet-stream'}));
  const link = h('a', {href: url, download: name, hidden: true});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
