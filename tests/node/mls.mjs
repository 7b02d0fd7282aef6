// What MLS (ts-mls) is told of Waxwing's groups: suites, leaves, key packages. From docs/protocol.md, "Groups".

import {createHash, randomBytes} from 'node:crypto';
import {generateKeyPackageWithKey, getCiphersuiteImpl, makeCustomExtension} from 'ts-mls';
import {Reader, concat, postcard, publicOf, sha256, signed, suites, u64, verifies} from './envelope.mjs';

const POLICY = 0xf7a0;
const VIA = 0xf7a1;
const EXPIRES = 0xf7a2;
const NAME = 0xf7a3;
const SELF_REMOVE = 0x000a;
const LAST_RESORT = 0x000a;
const X_WING = 0x004f;
const utf8 = new TextEncoder();

// A suite of MLS by its number. 0x004F is not among ts-mls's: it is suite 1 with another KEM.
export async function cipherSuite(id) {
  const classical = await getCiphersuiteImpl('MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519');
  const hpke = id === X_WING ? {...classical.hpke, ...xWing(suites[2])} : classical.hpke;
  // This version of ts-mls takes a group info's external_pub for the bare key; it is a vector (RFC 9420 §12.4.3.2), with a length before it.
  const importPublicKey = (key) => hpke.importPublicKey(key.slice(key.length % 32));
  return {...classical, id, hpke: {...hpke, importPublicKey}};
}

function xWing(suite) {
  const {kem} = suite;
  const bytes = async (made) => new Uint8Array(await made);
  return {
    open: async (recipientKey, enc, ciphertext, info, aad) => bytes(suite.open({recipientKey, enc, info}, ciphertext, aad)),
    async seal(recipientPublicKey, plaintext, info, aad) {
      const {ct, enc} = await suite.seal({recipientPublicKey, info}, plaintext, aad);
      return {ct: new Uint8Array(ct), enc: new Uint8Array(enc)};
    },
    async exportSecret(recipientPublicKey, context, length, info) {
      const sender = await suite.createSenderContext({recipientPublicKey, info});
      return {enc: new Uint8Array(sender.enc), secret: await bytes(sender.export(context, length))};
    },
    async importSecret(recipientKey, context, enc, length, info) {
      const recipient = await suite.createRecipientContext({recipientKey, enc, info});
      return bytes(recipient.export(context, length));
    },
    importPrivateKey: (key) => kem.deserializePrivateKey(key),
    importPublicKey: (key) => kem.deserializePublicKey(key),
    exportPrivateKey: (key) => bytes(kem.serializePrivateKey(key)),
    exportPublicKey: (key) => bytes(kem.serializePublicKey(key)),
    deriveKeyPair: (ikm) => fromSeed(kem, labeledDerive(ikm, 'DeriveKeyPair', 32)),
    generateKeyPair: () => fromSeed(kem, randomBytes(32)),
  };
}

async function fromSeed(kem, seed) {
  const {privateKey, publicKey} = await kem.generateKeyPairDerand(seed);
  return {privateKey, publicKey};
}

// SHAKE256.LabeledDerive (draft-ietf-hpke-hpke) for the KEM 0x647A: what draft-ietf-hpke-pq derives key pairs with, and the library does not.
function labeledDerive(ikm, label, length) {
  const u16 = (value) => [value >> 8, value & 0xff];
  const input = concat(ikm, utf8.encode('HPKE-v1KEM'), u16(0x647a), u16(label.length), utf8.encode(label), u16(length));
  return Uint8Array.from(createHash('shake256', {outputLength: length}).update(input).digest());
}

const capabilities = (suite) => ({
  versions: [1],
  ciphersuites: [suite],
  extensions: [POLICY, VIA, EXPIRES, NAME, LAST_RESORT],
  proposals: [SELF_REMOVE],
  credentials: [1],
});

const statementMessage = (user, device, inbox, notAfter, counter) =>
  concat(utf8.encode('waxwing certificate v1'), user, device, inbox, u64(notAfter), u64(counter).slice(0, 4));

// A person with a device: the device's seed and key, and the person's statement about it.
export function newDevice() {
  const [person, seed, inbox] = [randomBytes(32), randomBytes(32), sha256(randomBytes(1216))];
  const [user, device] = [publicOf(person), publicOf(seed)];
  const notAfter = 2_000_000_000_000;
  const signature = signed(person, statementMessage(user, device, inbox, notAfter, 1));
  return {seed, device, statement: concat(user, inbox, postcard.varint(notAfter), postcard.varint(1), signature)};
}

// Takes a leaf whose credential is a person's statement about the leaf's key, and no other.
export const authService = {
  async validateCredential({credentialType, identity}, device) {
    const reader = new Reader(identity);
    const [user, inbox, notAfter, counter, signature] =
      [reader.raw(32), reader.raw(32), reader.varint(), reader.varint(), reader.raw(64)];
    reader.end();
    return credentialType === 1 && verifies(user, statementMessage(user, device, inbox, notAfter, counter), signature);
  },
};

export function keyPackage(suite, {seed, device, statement}) {
  return generateKeyPackageWithKey({
    credential: {credentialType: 1, identity: statement},
    capabilities: capabilities(suite.id),
    lifetime: {notBefore: 0n, notAfter: 2n ** 64n - 1n},
    extensions: [makeCustomExtension({extensionType: EXPIRES, extensionData: u64(2_000_000_000_000)})],
    signatureKeyPair: {signKey: seed, publicKey: device},
    cipherSuite: suite,
  });
}
