// How a person looks: the colour comes from the key, so that two people of one name look different; where names in a room are
// equal, or could be taken for each other, a badge with the key's beginning says so in letters.

import {h} from './dom.js';

export function hueOf(user) {
  let hash = 2166136261;
  for (const char of user) {
    hash = Math.imul(hash ^ char.codePointAt(0), 16777619) >>> 0;
  }
  return hash % 360;
}

export function initialsOf(name) {
  const words = name.trim().split(/\s+/u).filter(Boolean);
  const first = (word) => [...(word ?? '')][0] ?? '';
  return (words.length > 1 ? first(words[0]) + first(words.at(-1)) : first(words[0])).toLocaleUpperCase() || '?';
}

export function badgeOf(user) {
  return user.slice(0, 5);
}

export function paint(element, user) {
  element.style.setProperty('--hue', String(hueOf(user)));
}

export function avatar(user, name) {
  const element = h('span', {class: 'avatar', 'aria-hidden': 'true'}, initialsOf(name));
  paint(element, user);
  return element;
}

export function badge(user) {
  const element = h('span', {class: 'badge', title: `The beginning of this person's key: ${user}`}, badgeOf(user));
  paint(element, user);
  return element;
}

// The form of a name in which names that look alike are equal: width, case, marks, spaces and the commonest look-alike letters.
function skeleton(name) {
  const alike = {'0': 'o', '1': 'l', i: 'l', '|': 'l', 'а': 'a', 'е': 'e', 'о': 'o', 'р': 'p', 'с': 'c', 'х': 'x', 'у': 'y', 'ο': 'o', 'α': 'a', 'ι': 'l', 'і': 'l'};
  return [...name.normalize('NFKD').replace(/[\p{M}\p{Cf}\s]/gu, '').toLocaleLowerCase()].map((char) => alike[char] ?? char).join('');
}

// The users of a room whose names could be taken for another's.
export function ambiguousUsers(entry) {
  const users = new Map();
  const note = ({user, name}) => {
    const key = skeleton(name);
    users.set(key, (users.get(key) ?? new Set()).add(user));
  };
  entry.room?.members.forEach(note);
  entry.authors.forEach(note);
  return new Set([...users.values()].filter((set) => set.size > 1).flatMap((set) => [...set]));
}
