// One connection to the edge: WebSocket and WebTransport race, and the first that is ready carries the session.

const READY_MS = 6000;
// How long an open WebSocket waits for WebTransport.
const PREFER_MS = 300;
// WebTransport can get ready and then stay silent (middleboxes, some browsers): then it is not used again for a while.
const ECHO_MS = 4000;
const SHUNNED_MS = 600_000;
const SUBPROTOCOL = 'waxwing.v1';

export class Transport {
  #forced;
  #handlers;
  #link = null;
  #attempt = null;
  #shunnedUntil = 0;

  // `forced` is "ws", "wt" or null. Handlers: connected(name), received(bytes), disconnected(reason).
  constructor(forced, handlers) {
    this.#forced = forced;
    this.#handlers = handlers;
  }

  // Tries once; the answer is `connected` or `disconnected`. When to try again is the core's decision.
  async connect() {
    if (this.#link || this.#attempt) {
      return;
    }
    const attempt = new AbortController();
    this.#attempt = attempt;
    try {
      const link = await this.#race(attempt.signal);
      if (attempt.signal.aborted) {
        link.close();
        return;
      }
      this.#attempt = null;
      this.#use(link);
    } catch (error) {
      if (!attempt.signal.aborted) {
        this.#attempt = null;
        this.#handlers.disconnected(error.message);
      }
    }
  }

  // The connection of this moment, or null.
  get link() {
    return this.#link;
  }

  // Sends over `link`, if that is still the connection.
  send(bytes, link) {
    if (link !== null && link === this.#link) {
      link.send(bytes);
    }
  }

  // Ends `link`, or the attempt if it is null; `disconnected` is called if there was one.
  close(link) {
    if (link !== this.#link) {
      return;
    }
    const attempt = this.#attempt;
    this.#attempt = null;
    attempt?.abort();
    this.#link?.close();
    if (attempt) {
      this.#handlers.disconnected('closed');
    }
  }

  async #race(signal) {
    const edge = await describe(signal);
    const links = [];
    if (this.#forced !== 'wt') {
      links.push({name: 'ws', link: openWebSocket(edge, signal)});
    }
    const mayUseWt = this.#forced === 'wt' || (this.#forced === null && Date.now() > this.#shunnedUntil);
    if (mayUseWt && edge.quic && typeof WebTransport === 'function') {
      links.push({name: 'wt', link: openWebTransport(edge, signal)});
    }
    if (links.length === 0) {
      throw new Error('this browser has no WebTransport');
    }
    return choose(links.map(({link}) => link), (link) => this.#moveUp(link));
  }

  // WebTransport got ready after WebSocket had been chosen: the session moves over, and resumes where it is.
  #moveUp(link) {
    const old = this.#link;
    if (old?.name !== 'ws') {
      link.close();
      return;
    }
    this.#use(link);
    old.close();
  }

  #use(link) {
    let echo = 0;
    if (link.name === 'wt') {
      echo = setTimeout(() => {
        this.#shunnedUntil = Date.now() + (this.#forced ? 0 : SHUNNED_MS);
        link.close('the edge did not answer over WebTransport');
      }, ECHO_MS);
    }
    this.#link = link;
    link.onbytes = (bytes) => {
      clearTimeout(echo);
      if (this.#link === link) {
        this.#handlers.received(bytes);
      }
    };
    link.onclose = (reason) => {
      clearTimeout(echo);
      if (this.#link === link) {
        this.#link = null;
        this.#handlers.disconnected(reason);
      }
    };
    this.#handlers.connected(link.name);
    link.start();
  }
}

// What the edge says about itself: where its QUIC is, and the hash of a development certificate.
async function describe(signal) {
  const response = await fetch('/.well-known/waxwing', {cache: 'no-store', signal: AbortSignal.any([signal, AbortSignal.timeout(READY_MS)])})
    .catch(() => { throw new Error('the server does not answer'); });
  if (!response.ok) {
    throw new Error(`the server answered ${response.status}`);
  }
  return response.json();
}

// The first link that is ready; if that is not the last of them, the last (the preferred one) has a moment to catch up. One
// that gets ready later still is `late`.
async function choose(attempts, late) {
  const first = await Promise.any(attempts).catch((error) => { throw error.errors[0]; });
  const preferred = attempts.at(-1);
  const patience = new Promise((resolve) => setTimeout(resolve, PREFER_MS, first));
  const chosen = await Promise.race([preferred.catch(() => first), patience]);
  for (const attempt of attempts) {
    attempt.then((link) => link !== chosen && (attempt === preferred ? late(link) : link.close()), () => {});
  }
  return chosen;
}

// A link that is ready calls nothing before `start`; what arrives until then is kept.
class Link {
  onbytes = null;
  onclose = null;
  #early = [];
  #started = false;
  #closed = false;

  constructor(name) {
    this.name = name;
  }

  start() {
    this.#started = true;
    for (const act of this.#early.splice(0)) {
      act();
    }
  }

  deliver(bytes) {
    this.#when(() => this.onbytes?.(bytes));
  }

  closed(reason) {
    if (!this.#closed) {
      this.#closed = true;
      this.#when(() => this.onclose?.(reason));
    }
  }

  #when(act) {
    if (this.#started) {
      act();
    } else {
      this.#early.push(act);
    }
  }
}

function openWebSocket(edge, signal) {
  const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
  const socket = new WebSocket(`${scheme}://${location.host}${edge.ws}`, SUBPROTOCOL);
  socket.binaryType = 'arraybuffer';
  const link = new Link('ws');
  link.send = (bytes) => socket.readyState === WebSocket.OPEN && socket.send(bytes);
  link.close = (reason) => {
    socket.close();
    link.closed(reason ?? 'closed');
  };
  socket.onmessage = ({data}) => link.deliver(new Uint8Array(data));
  return new Promise((resolve, reject) => {
    const fail = () => {
      reject(new Error('the WebSocket did not open'));
      socket.close();
    };
    const timer = setTimeout(fail, READY_MS);
    signal.addEventListener('abort', fail);
    socket.onopen = () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', fail);
      resolve(link);
    };
    socket.onclose = ({code}) => {
      clearTimeout(timer);
      fail();
      link.closed(`the connection was lost (${code})`);
    };
  });
}

async function openWebTransport(edge, signal) {
  const address = /^\d+$/.test(String(edge.quic)) ? `${location.hostname}:${edge.quic}` : edge.quic;
  const options = {};
  if (edge.certificate_sha256) {
    options.serverCertificateHashes = [{algorithm: 'sha-256', value: fromHex(edge.certificate_sha256)}];
  }
  const session = new WebTransport(`https://${address}${edge.wt}`, options);
  const link = new Link('wt');
  session.closed.then(
    () => link.closed('the connection was closed'),
    (error) => link.closed(error.message || 'the connection was lost'));
  try {
    const stream = await within(READY_MS, signal, session.ready.then(() => session.createBidirectionalStream()));
    const writer = stream.writable.getWriter();
    link.send = (bytes) => writer.write(bytes).catch(() => {});
    link.close = (reason) => {
      link.closed(reason ?? 'closed');
      session.close();
    };
    pump(stream.readable.getReader(), link);
    return link;
  } catch (error) {
    try {
      session.close();
    } catch {
      // It was closed already.
    }
    throw new Error(`WebTransport: ${error.message}`);
  }
}

async function pump(reader, link) {
  try {
    for (;;) {
      const {value, done} = await reader.read();
      if (done) {
        link.close('the connection was closed');
        return;
      }
      link.deliver(value);
    }
  } catch (error) {
    link.closed(error.message || 'the connection was lost');
  }
}

function within(ms, signal, promise) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error('took too long')), ms);
    signal.addEventListener('abort', () => reject(new Error('no longer wanted')));
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

function fromHex(text) {
  return Uint8Array.from(text.match(/../g) ?? [], (byte) => parseInt(byte, 16));
}
