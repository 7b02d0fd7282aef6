// What can be seen: the core's events, folded. The leader keeps one to answer new tabs; each tab keeps one to draw.

const TYPING_SHOWN_MS = 5000;

export class State {
  // undefined: not known yet; null: there is none.
  identity = undefined;
  connection = {state: 'connecting', transport: null, detail: null};
  // Room id -> {room, messages: Map(key -> message), authors: Map(key and name -> author), typing: Map(name -> until)}
  rooms = new Map();
  // Room id -> invitation of somebody unknown, which waits for an answer.
  requests = new Map();

  static from(plain) {
    return Object.assign(new State(), plain);
  }

  // Returns the message that is new, if the event brought one.
  apply(event) {
    switch (event.event) {
      case 'identity':
        this.identity = event.identity;
        return undefined;
      case 'device_code':
        this.deviceCode = event;
        return undefined;
      case 'connection':
        this.connection = {state: event.state, transport: event.transport, detail: event.detail};
        return undefined;
      case 'room':
        this.#entry(event.room.id).room = event.room;
        return undefined;
      case 'room_removed':
        this.rooms.delete(event.room);
        return undefined;
      case 'invitation':
        this.requests.set(event.invitation.room, event.invitation);
        return undefined;
      case 'invitation_removed':
        this.requests.delete(event.room);
        return undefined;
      case 'message':
        return this.#message(this.#entry(event.room), event.message);
      case 'message_removed':
        this.#remove(this.rooms.get(event.room), event.key);
        return undefined;
      case 'typing':
        this.#entry(event.room).typing.set(event.name, Date.now() + TYPING_SHOWN_MS);
        return undefined;
      default:
        return undefined;
    }
  }

  #entry(id) {
    let entry = this.rooms.get(id);
    if (!entry) {
      entry = {room: null, messages: new Map(), authors: new Map(), typing: new Map()};
      this.rooms.set(id, entry);
    }
    return entry;
  }

  #message(entry, message) {
    const isNew = !entry.messages.has(message.key);
    entry.messages.set(message.key, message);
    entry.authors.set(`${message.author.user} ${message.author.name}`, message.author);
    orders.delete(entry);
    if (!message.mine) {
      entry.typing.delete(message.author.name);
    }
    return isNew ? message : undefined;
  }

  #remove(entry, key) {
    entry?.messages.delete(key);
    orders.delete(entry);
  }
}

// Entry -> its messages in order, until they change: one draw asks several times.
const orders = new WeakMap();

// The messages in the order of the room; what has no place in it yet comes last, by time.
export function inOrder(entry) {
  const place = (message) => message.seq ?? Number.MAX_SAFE_INTEGER;
  let ordered = orders.get(entry);
  if (!ordered) {
    ordered = [...entry.messages.values()].sort((a, b) => place(a) - place(b) || a.time_ms - b.time_ms || (a.key < b.key ? -1 : 1));
    orders.set(entry, ordered);
  }
  return ordered;
}
