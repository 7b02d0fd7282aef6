// The lanes of a WebTransport session beside its control stream: the edge's unidirectional streams, and datagrams. What comes
// on them is put in order by the core.

// Asks the edge for them.
export const QUERY = 'lanes=1';

// Tells what comes, as received(bytes, origin): {stream} with the stream's number, without bytes when it has ended; or {datagram}.
export function readLanes(session, received, broken) {
  // That the session ends is told by the session.
  readStreams(session.incomingUnidirectionalStreams.getReader(), received, broken).catch(() => {});
  read(session.datagrams.readable.getReader(), (bytes) => received(bytes, {datagram: true})).catch(() => {});
}

// Sends bytes as a datagram; false if the session takes none so large.
export function datagramSender(session) {
  const {datagrams} = session;
  const writer = (datagrams.createWritable?.() ?? datagrams.writable).getWriter();
  return (bytes) => {
    if (bytes.length > datagrams.maxDatagramSize) {
      return false;
    }
    // What cannot be sent now is dropped.
    writer.write(bytes).catch(() => {});
    return true;
  };
}

async function readStreams(streams, received, broken) {
  let number = 0;
  await read(streams, (stream) => {
    number += 1;
    const origin = {stream: number};
    read(stream.getReader(), (bytes) => received(bytes, origin))
      .then(() => received(null, origin), () => broken('a stream broke'));
  });
}

export async function read(reader, use) {
  for (;;) {
    const {value, done} = await reader.read();
    if (done) {
      return;
    }
    use(value);
  }
}
