// What the core keeps, in IndexedDB. Every value is sealed with AES-GCM under a key that cannot be exported from this browser
// (the browser holds it, scripts only use it), and bound to its name, so that values cannot be swapped.

const DATABASE = 'waxwing';
const ENTRIES = 'entries';
const KEYS = 'keys';
const KEY_NAME = 'wrapping';
const IV_LENGTH = 12;

const utf8 = new TextEncoder();

export class Store {
  #database;
  #key;

  static async open() {
    const store = new Store();
    store.#database = await openDatabase();
    store.#key = await wrappingKey(store.#database);
    return store;
  }

  // Every entry, as [name, bytes].
  async all() {
    const transaction = this.#database.transaction(ENTRIES, 'readonly');
    const entries = transaction.objectStore(ENTRIES);
    const [names, values] = await Promise.all([result(entries.getAllKeys()), result(entries.getAll())]);
    return Promise.all(names.map(async (name, index) => [name, await this.#open(name, values[index])]));
  }

  // Writes [name, bytes or null] in one transaction; when it resolves, they are on disk.
  async write(changes) {
    const sealed = await Promise.all(changes.map(async ([name, value]) => [name, value && (await this.#seal(name, value))]));
    const transaction = this.#database.transaction(ENTRIES, 'readwrite', {durability: 'strict'});
    const entries = transaction.objectStore(ENTRIES);
    for (const [name, value] of sealed) {
      if (value) {
        entries.put(value, name);
      } else {
        entries.delete(name);
      }
    }
    await complete(transaction);
  }

  async #seal(name, value) {
    const iv = crypto.getRandomValues(new Uint8Array(IV_LENGTH));
    const sealed = await crypto.subtle.encrypt({name: 'AES-GCM', iv, additionalData: utf8.encode(name)}, this.#key, value);
    const bytes = new Uint8Array(IV_LENGTH + sealed.byteLength);
    bytes.set(iv);
    bytes.set(new Uint8Array(sealed), IV_LENGTH);
    return bytes;
  }

  async #open(name, bytes) {
    const iv = bytes.subarray(0, IV_LENGTH);
    const opened = await crypto.subtle.decrypt(
      {name: 'AES-GCM', iv, additionalData: utf8.encode(name)}, this.#key, bytes.subarray(IV_LENGTH));
    return new Uint8Array(opened);
  }
}

function openDatabase() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore(ENTRIES);
    request.result.createObjectStore(KEYS);
  };
  return result(request);
}

async function wrappingKey(database) {
  const kept = await result(database.transaction(KEYS, 'readonly').objectStore(KEYS).get(KEY_NAME));
  if (kept) {
    return kept;
  }
  const key = await crypto.subtle.generateKey({name: 'AES-GCM', length: 256}, false, ['encrypt', 'decrypt']);
  const transaction = database.transaction(KEYS, 'readwrite', {durability: 'strict'});
  transaction.objectStore(KEYS).put(key, KEY_NAME);
  await complete(transaction);
  return key;
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function complete(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new Error('the browser gave up writing'));
  });
}
