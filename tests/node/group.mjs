// node group.mjs ROOM SUITE    a member of a room's group, on another implementation of MLS than the product's
//
// A command a line, {"do", ...}, and an answer for each, {"group"?, "out"?} or {"failed"}; all bytes in hex. "group" is what must be the
// same for all members after it.
//   package          out: a key package
//   join record      comes in by the record's welcome
//   process record   takes a record of somebody else's
//   commit remove    out: a record that removes these devices and gives new keys
//   rejoin info      out: a record by which it takes its own place again

import {createInterface} from 'node:readline';
import {hkdfSync, randomBytes} from 'node:crypto';
import {clientStateEncoder, createCommit, decode, encode, getGroupMembers, joinGroup, joinGroupExternal, mlsExporter, mlsMessageDecoder,
  mlsMessageEncoder, processMessage} from 'ts-mls';
import {Reader, concat, hex, open, parseHeader, postcard, publicOf, seal, sha256, u64, unhex} from './envelope.mjs';
import {authService, cipherSuite, keyPackage, newDevice} from './mls.mjs';

const room = unhex(process.argv[2]);
const suite = await cipherSuite(Number(process.argv[3]));
const context = {cipherSuite: suite, authService};
const me = newDevice();
const NOT_A_MEMBER = 0xffffffff;

let made;
let state;
let epoch;

const wire = (wireformat, content) => encode(mlsMessageEncoder, {version: 1, wireformat, ...content});
const parsed = (bytes) => decode(mlsMessageDecoder, bytes) ?? fail('no message of MLS');
const leafOf = (device) => state.ratchetTree.filter((_, at) => at % 2 === 0).findIndex((node) => node && hex(node.leaf.signaturePublicKey) === device);

function fail(reason) {
  throw new Error(reason);
}

// The keys of envelopes (protocol: "Epoch").
async function enter(next) {
  state = next;
  const {keySchedule: {exporterSecret, epochAuthenticator}, groupContext} = state;
  const exported = (label) => mlsExporter(exporterSecret, label, new Uint8Array(), 32, suite);
  epoch = {
    number: groupContext.epoch,
    authenticator: epochAuthenticator,
    x25519: await exported('waxwing x25519'),
    xwing: await exported('waxwing xwing'),
    psk: await exported('waxwing psk'),
  };
  const {number, ...secrets} = epoch;
  const members = getGroupMembers(state).map((leaf) => hex(leaf.signaturePublicKey));
  return {epoch: Number(number), members, ...Object.fromEntries(Object.entries(secrets).map(([name, value]) => [name, hex(value)]))};
}

// A record: the commit's envelope, welcome, group info, what opens it, trailer.
function readRecord(bytes) {
  const trailer = new Reader(bytes.slice(-52));
  const [, access, lengths] = [trailer.raw(8), trailer.raw(32), trailer.raw(12)];
  const [welcomeLength, infoLength, besideLength] = [0, 4, 8].map((at) => Buffer.from(lengths).readUInt32LE(at));
  const reader = new Reader(bytes.slice(0, -52));
  const part = (length) => length > 0 ? reader.raw(length) : undefined;
  const commit = reader.raw(reader.rest.length - welcomeLength - infoLength - besideLength);
  const [welcome, info, beside] = [part(welcomeLength), part(infoLength), part(besideLength)];
  // What the committer signs of both.
  const groupInfo = beside && concat(info ? sha256(info) : new Uint8Array(), beside);
  return {commit, welcome, groupInfo, access: access.some((byte) => byte !== 0) ? access : undefined};
}

function readHandshake(bytes) {
  const reader = new Reader(bytes);
  const digest = () => reader.raw(32);
  const handshake = {
    commit: reader.bytes(),
    leaves: reader.list(() => reader.bytes()),
    welcome: reader.option(digest),
    groupInfo: reader.option(digest),
    joiner: reader.option(() => ({device: reader.raw(32), link: reader.option(() => reader.raw(48))})),
  };
  reader.end();
  return handshake;
}

// A record without welcome and group info. `access` opens the room from then on, when somebody goes.
async function record(keys, header, commit, {joiner, access = new Uint8Array(32)}) {
  const none = postcard.option();
  const handshake = concat(postcard.bytes(commit), postcard.list([]), none, none, postcard.option(joiner));
  const envelope = await seal(keys, me.seed, {kind: 4, room, message: randomBytes(16), ...header}, handshake);
  return hex(concat(envelope, u64(0), access, new Uint8Array(12)));
}

// The room's access key that an epoch's secrets give.
const accessKey = ({psk}) => publicOf(Buffer.from(hkdfSync('sha256', psk, 'waxwing room access v1', room, 32)));

const commands = {
  async package() {
    made = await keyPackage(suite, me);
    return {out: hex(wire(5, {keyPackage: made.publicPackage}))};
  },

  async join({record: bytes}) {
    const {welcome} = parsed(readRecord(unhex(bytes)).welcome);
    const {publicPackage, privatePackage: privateKeys} = made;
    return {group: await enter(await joinGroup({context, welcome, keyPackage: publicPackage, privateKeys}))};
  },

  async process({record: bytes}) {
    const {commit: envelope, welcome, groupInfo, access} = readRecord(unhex(bytes));
    const {kind, suite: envelopeSuite, epoch: ends, leaf} = parseHeader(envelope);
    if (kind !== 4 || ends !== epoch.number) {
      fail('not a change of this epoch');
    }
    const keys = {...epoch, seed: epoch.xwing, context: sha256(groupContext(encode(clientStateEncoder, state)))};
    const sender = (body) => envelopeSuite === 1 ? state.ratchetTree[leaf * 2].leaf.signaturePublicKey : readHandshake(body).joiner.device;
    const {body} = await open(keys, sender, envelope);
    const handshake = readHandshake(body);
    if ((handshake.joiner === undefined) !== (envelopeSuite === 1)) {
      fail('who makes the change is not who sealed it');
    }
    const beside = (bytes) => bytes && hex(sha256(bytes));
    if (beside(welcome) !== (handshake.welcome && hex(handshake.welcome)) || beside(groupInfo) !== (handshake.groupInfo && hex(handshake.groupInfo))) {
      fail('put together from several records');
    }
    const members = getGroupMembers(state).length;
    const {newState} = await processMessage({context, state, message: parsed(handshake.commit)});
    const group = await enter(newState);
    if (access ? hex(access) !== hex(accessKey(epoch)) : group.members.length < members) {
      fail('the room\'s access key is not the epoch\'s');
    }
    return {group};
  },

  async commit({remove}) {
    const extraProposals = remove.map((device) => ({proposalType: 3, remove: {removed: leafOf(device)}}));
    const {commit, newState} = await createCommit({context, state, wireAsPublicMessage: true, extraProposals});
    const [ends, header] = [epoch, {suite: 1, epoch: epoch.number, leaf: state.privatePath.leafIndex}];
    const group = await enter(newState);
    const access = remove.length > 0 ? accessKey(epoch) : undefined;
    return {out: await record(ends, header, encode(mlsMessageEncoder, commit), {access}), group};
  },

  async rejoin({info}) {
    const reader = new Reader(unhex(info));
    const [message, , xwing] = [reader.bytes(), reader.raw(32), reader.bytes()];
    const {groupInfo} = parsed(message);
    made = await keyPackage(suite, me);
    const {publicPackage, privatePackage: privateKeys} = made;
    const {publicMessage, newState} = await joinGroupExternal({context, groupInfo, keyPackage: publicPackage, privateKeys, resync: true});
    const keys = {context: sha256(groupContext(message.slice(4))), public: xwing};
    const header = {suite: 2, epoch: groupInfo.groupContext.epoch, leaf: NOT_A_MEMBER};
    const out = await record(keys, header, wire(1, {publicMessage}), {joiner: concat(me.device, postcard.option())});
    return {out, group: await enter(newState)};
  },
};

// The group context (RFC 9420 §8.1) with which these bytes begin.
function groupContext(bytes) {
  const reader = new Reader(bytes);
  const vector = () => {
    // RFC 9000 §16: two bits say how many bytes the length has.
    const [first] = reader.raw(1);
    const more = reader.raw((1 << (first >> 6)) - 1);
    reader.raw(more.reduce((length, byte) => length * 256 + byte, first & 0x3f));
  };
  // Version and suite, group id, epoch, tree hash, transcript hash, extensions.
  reader.raw(4);
  vector();
  reader.raw(8);
  vector();
  vector();
  vector();
  return bytes.slice(0, bytes.length - reader.rest.length);
}

for await (const line of createInterface({input: process.stdin})) {
  const {do: name, ...args} = JSON.parse(line);
  const answer = await commands[name](args).catch((error) => ({failed: `${name}: ${error.stack}`}));
  console.log(JSON.stringify(answer));
}
