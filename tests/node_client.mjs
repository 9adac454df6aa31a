// Node's two HTTP clients, fetch (undici) and http.Agent, asking again on idle connections at given times.
//
//   node node_client.mjs URL CONNECTIONS OFFSET:BLOCK ...
//
// For each pair: open connections with one POST each, let them idle, keep the event loop busy from OFFSET for
// BLOCK seconds, as an application does now and then, and then POST on all of them at once. What the server does
// to a connection meanwhile goes unnoticed. Prints what became of all requests as JSON.

import http from 'node:http';

const [url, count, ...rounds] = process.argv.slice(2);
const result = {sent: 0, reused: 0, errors: []};

function withAgent() {
  // Node heeds the header only to shorten a timeout that the agent has, as the default agent does.
  const agent = new http.Agent({keepAlive: true, maxFreeSockets: Infinity, timeout: 60_000});
  return () => new Promise((resolve, reject) => {
    const request = http.request(url, {method: 'POST', agent, headers: {'content-length': 1}}, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (piece) => { text += piece; });
      response.on('end', () => resolve(JSON.parse(text)));
      response.on('error', reject);
    });
    request.on('error', reject);
    request.end('x');
  });
}

async function withFetch() {
  const response = await fetch(url, {method: 'POST', body: 'x'});
  return response.json();
}

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

for (const round of rounds) {
  const [offset, block] = round.split(':').map(Number);
  const agent = withAgent();
  const clients = [];
  for (let i = 0; i < Number(count); i++) {
    clients.push(['fetch', withFetch], ['agent', agent]);
  }
  const askAll = (when) => Promise.all(clients.map(async ([name, ask]) => {
    result.sent += 1;
    try {
      const facts = await ask();
      result.reused += facts.requests > 1 ? 1 : 0;
    } catch (error) {
      result.errors.push(`${name} ${when}: ${error.cause?.code ?? error.code ?? error}`);
    }
  }));
  await askAll('at first');
  await sleep(offset);
  const until = performance.now() + block * 1000;
  while (performance.now() < until);
  await askAll(`at ${offset} s`);
}
console.log(JSON.stringify(result));
process.exit(0);
