// Links to the edge: numbered connections that are opened, written to and closed as the core says. What carries the session, and
// when to try again, is the core's to decide.

import {QUERY, datagramSender, read, readLanes} from './lanes.js';

const OPEN_MS = 8000;
// A WebTransport session that is closed has so long to let a goodbye out.
const FAREWELL_MS = 1000;
// What the edge said about itself is asked for again after this long, and whenever a link could not be opened.
const EDGE_KEPT_MS = 300_000;
const SUBPROTOCOL = 'waxwing.v1';

export class Links {
  #handlers;
  #links = new Map();
  #edge = null;

  // Handlers: opened(link), received(link, bytes, origin), lost(link, reason); the origin is that of lanes.js, and none on the
  // control stream. Nothing is called for a link after `close`.
  constructor(handlers) {
    this.#handlers = handlers;
  }

  // Opens a link over "ws" or "wt"; the answer is `opened` or `lost`.
  async open(link, transport) {
    const giving = new AbortController();
    this.#links.set(link, {close: () => giving.abort(), send() {}});
    const events = {
      received: (bytes, origin) => this.#links.has(link) && this.#handlers.received(link, bytes, origin),
      lost: (reason) => this.#links.delete(link) && this.#handlers.lost(link, reason),
    };
    try {
      const signal = AbortSignal.any([giving.signal, AbortSignal.timeout(OPEN_MS)]);
      const edge = await this.#describe(signal);
      const connection = await (transport === 'wt' ? openWebTransport : openWebSocket)(edge, signal, events);
      if (!this.#links.has(link)) {
        connection.close();
        return;
      }
      this.#links.set(link, connection);
      this.#handlers.opened(link);
      connection.start();
    } catch (error) {
      if (this.#links.has(link)) {
        this.#edge = null;
        events.lost(error.message);
      }
    }
  }

  // What is droppable may be lost.
  send(link, bytes, droppable = false) {
    this.#links.get(link)?.send(bytes, droppable);
  }

  // What was sent before still leaves.
  close(link) {
    const connection = this.#links.get(link);
    this.#links.delete(link);
    connection?.close();
  }

  // Two links that are opened together ask once.
  #describe(signal) {
    const now = Date.now();
    if (this.#edge === null || now > this.#edge.until) {
      this.#edge = {until: now + EDGE_KEPT_MS, description: describe()};
    }
    return raced(signal, this.#edge.description);
  }
}

// What the edge says about itself: where its QUIC is, and the hash of a development certificate.
async function describe() {
  const response = await fetch('/.well-known/waxwing', {cache: 'no-store', signal: AbortSignal.timeout(OPEN_MS)})
    .catch(() => { throw new Error('the server does not answer'); });
  if (!response.ok) {
    throw new Error(`the server answered ${response.status}`);
  }
  return response.json();
}

// What arrives before the core knows that the link is open waits for that.
class Gate {
  #early = [];

  through(act) {
    if (this.#early) {
      this.#early.push(act);
    } else {
      act();
    }
  }

  open() {
    const early = this.#early;
    this.#early = null;
    for (const act of early) {
      act();
    }
  }
}

function openWebSocket(edge, signal, {received, lost}) {
  const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
  const socket = new WebSocket(`${scheme}://${location.host}${edge.ws}`, SUBPROTOCOL);
  const gate = new Gate();
  socket.binaryType = 'arraybuffer';
  socket.onmessage = ({data}) => gate.through(() => received(new Uint8Array(data)));
  const opening = new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onclose = ({code}) => {
      reject(new Error('the WebSocket did not open'));
      gate.through(() => lost(`the connection was lost (${code})`));
    };
  });
  const connection = {
    send: (bytes) => socket.readyState === WebSocket.OPEN && socket.send(bytes),
    close: () => socket.close(),
    start: () => gate.open(),
  };
  return raced(signal, opening.then(() => connection)).catch((error) => {
    socket.close();
    throw error;
  });
}

async function openWebTransport(edge, signal, {received, lost}) {
  if (typeof WebTransport !== 'function') {
    throw new Error('this browser has no WebTransport');
  }
  if (!edge.quic) {
    throw new Error('the server has no WebTransport');
  }
  const address = /^\d+$/.test(String(edge.quic)) ? `${location.hostname}:${edge.quic}` : edge.quic;
  const options = {};
  if (edge.certificate_sha256) {
    options.serverCertificateHashes = [{algorithm: 'sha-256', value: fromHex(edge.certificate_sha256)}];
  }
  const session = new WebTransport(`https://${address}${edge.wt}?${QUERY}`, options);
  const gate = new Gate();
  const ended = (reason) => gate.through(() => lost(reason));
  session.closed.then(
    () => ended('the connection was closed'),
    (error) => ended(error.message || 'the connection was lost'));
  try {
    const stream = await raced(signal, session.ready.then(() => session.createBidirectionalStream()));
    const writer = stream.writable.getWriter();
    const sendDatagram = datagramSender(session);
    const arrived = (bytes, origin) => gate.through(() => received(bytes, origin));
    readLanes(session, arrived, ended);
    read(stream.readable.getReader(), (bytes) => arrived(bytes)).then(
      () => ended('the connection was closed'),
      (error) => ended(error.message || 'the connection was lost'));
    return {
      send: (bytes, droppable) => {
        if (!droppable || !sendDatagram(bytes)) {
          writer.write(bytes).catch(() => {});
        }
      },
      close: () => {
        writer.close().catch(() => {}).finally(() => closeQuietly(session));
        setTimeout(() => closeQuietly(session), FAREWELL_MS);
      },
      start: () => gate.open(),
    };
  } catch (error) {
    closeQuietly(session);
    throw new Error(`WebTransport: ${error.message}`);
  }
}

function closeQuietly(session) {
  try {
    session.close();
  } catch {
    // It was closed already, or never opened.
  }
}

function raced(signal, promise) {
  return new Promise((resolve, reject) => {
    const stop = () => reject(new Error(signal.reason?.name === 'TimeoutError' ? 'took too long' : 'no longer wanted'));
    if (signal.aborted) {
      stop();
    }
    signal.addEventListener('abort', stop, {once: true});
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop));
  });
}

function fromHex(text) {
  return Uint8Array.from(text.match(/../g) ?? [], (byte) => parseInt(byte, 16));
}
