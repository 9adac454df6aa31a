// Node's two HTTP clients, fetch (undici) and http.Agent, doing what they are told.
//
//   node fetch_client.mjs fetch|agent
//
// Reads a line of JSON for each operation of fetch_operations.mjs, [name, ...arguments], and answers it with a line:
// {"result": ...} or {"error": ...}.

import http from 'node:http';
import {createInterface} from 'node:readline';
import {Readable} from 'node:stream';
import {webcrypto} from 'node:crypto';

import {operations} from './fetch_operations.mjs';

globalThis.crypto ??= webcrypto;  // Node 18

const agent = new http.Agent({keepAlive: true});

function fetchByAgent(url, {method = 'GET', body, expect, signal}) {
  return new Promise((resolve, reject) => {
    const headers = {};
    if (body instanceof Uint8Array) headers['content-length'] = body.length;
    if (expect) headers.expect = '100-continue';
    const request = http.request(url, {method, agent, headers, signal}, (response) => {
      resolve(new Response(Readable.toWeb(response), {status: response.statusCode}));
    });
    request.on('error', reject);
    const send = () => {
      if (body instanceof ReadableStream) Readable.fromWeb(body).pipe(request);
      else request.end(body);
    };
    if (!expect) return send();
    request.on('continue', send);
    request.flushHeaders();
  });
}

const known = operations(process.argv[2] === 'agent' ? fetchByAgent : fetch);

createInterface({input: process.stdin}).on('line', async (line) => {
  const [name, ...words] = JSON.parse(line);
  let answer;
  try {
    answer = {result: await known[name](...words)};
  } catch (error) {
    answer = {error: `${error} ${error.cause ?? ''} ${error.cause?.code ?? ''}`};
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}).on('close', () => process.exit());
