// What this person has not seen yet. Kept for all tabs of the browser; only places in rooms are noted, no content.

const ENTRY = 'waxwing.read';

export class Unread {
  #read;

  constructor(changed) {
    this.#read = load();
    window.addEventListener('storage', ({key}) => {
      if (key === ENTRY) {
        this.#read = load();
        changed();
      }
    });
  }

  isNew(room, message) {
    return !message.mine && ['text', 'post'].includes(message.kind) && message.seq !== null && message.seq > (this.#read[room] ?? 0);
  }

  // Room id -> number of messages by others that were not seen.
  counts({rooms}) {
    const counts = new Map();
    for (const [id, {room, messages}] of rooms) {
      let count = 0;
      for (const message of messages.values()) {
        count += this.isNew(id, message) ? 1 : 0;
      }
      if (room && count > 0) {
        counts.set(id, count);
      }
    }
    return counts;
  }

  // Everything in the room has been seen.
  read(id, {messages}) {
    let last = this.#read[id] ?? 0;
    for (const {seq} of messages.values()) {
      last = Math.max(last, seq ?? 0);
    }
    if (last !== (this.#read[id] ?? 0)) {
      this.#read[id] = last;
      localStorage.setItem(ENTRY, JSON.stringify(this.#read));
    }
  }
}

function load() {
  try {
    return JSON.parse(localStorage.getItem(ENTRY)) ?? {};
  } catch {
    return {};
  }
}
