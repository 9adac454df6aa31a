// What the tests ask of a client that is, or looks like, fetch(): in Node (fetch_client.mjs) and in a browser.

const PATIENCE = 30_000;  // milliseconds after which an answer is no longer expected

function random(size) {
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at += 65536) {
    crypto.getRandomValues(bytes.subarray(at, Math.min(at + 65536, size)));
  }
  return bytes;
}

async function digest(bytes) {
  const sum = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return Array.from(sum, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

function inPieces(bytes, size = 100_000) {
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      controller.enqueue(bytes.slice(at, at += size));
      if (at >= bytes.length) controller.close();
    },
  });
}

export function operations(fetch) {
  let reader;

  async function ask(url, options = {}) {
    const response = await fetch(url, {signal: AbortSignal.timeout(PATIENCE), ...options});
    if (response.status !== 200) throw new Error(`status ${response.status}`);
    return response;
  }
  const json = async (url, options) => (await ask(url, options)).json();

  return {
    // Whatever has arrived is handled in one turn of the event loop, and its sockets are closed at the end of it.
    async turn() {
      for (let i = 0; i < 3; i++) await new Promise((resolve) => setTimeout(resolve));
      return null;
    },
    async get(url, count, abreast) {
      const answers = [];
      while (answers.length < count) {
        const width = Math.min(abreast, count - answers.length);
        answers.push(...await Promise.all(Array.from({length: width}, () => json(url))));
      }
      return answers;
    },
    async upload(url, size, how) {
      const bytes = random(size);
      const options = {length: {}, streamed: {body: inPieces(bytes), duplex: 'half'}, expect: {expect: true}};
      const answer = await json(url, {method: 'POST', body: bytes, ...options[how]});
      return [await digest(bytes), answer];
    },
    download: async (url) => digest(await (await ask(url)).arrayBuffer()),
    async open(url) {
      reader = (await ask(url)).body.getReader();
      return null;
    },
    async read() {
      const {value} = await reader.read();
      return value ? new TextDecoder().decode(value) : '';
    },
  };
}
