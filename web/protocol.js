// What tabs and the leading worker say to each other, over one BroadcastChannel. The leader runs the one core of this browser;
// every tab, its own included, is a client of it.
//
// tab -> leader   {type: "command", id, command}            an object of the core's vocabulary, as JSON
//                 {type: "export", id, passphrase}          answered with the backup's bytes
//                 {type: "import", id, bytes, passphrase}
//                 {type: "snapshot"}                        asks for the whole view state
//                 {type: "wake"}                            the person is back, or the network is
// leader -> tabs  {type: "hello", term}                     a leader is there; `term` is random, one for each leader
//                 {type: "snapshot", term, rev, state}
//                 {type: "events", term, rev, events}       `rev` is the number of the first of them
//                 {type: "done", id, value, error}          the answer to what had this id; it is durable

export const CHANNEL = 'waxwing.1';
export const LOCK = 'waxwing';

// Random, unique among all tabs and times.
export function newId() {
  return crypto.randomUUID();
}
