// node-redis and ioredis against a running daemon: node clients.mjs HOST PORT PASSWORD
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { createClient } from 'redis';
import Redis from 'ioredis';

const [host, port, password] = process.argv.slice(2);
const version = (name) => createRequire(import.meta.url)(`${name}/package.json`).version;

const refused = async (call, words) => {
  await assert.rejects(call, (error) => error.message.includes(words));
};

const until = async (what, ask) => {
  const deadline = Date.now() + 10_000;
  while (!(await ask())) {
    assert.ok(Date.now() < deadline, what);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
};

async function nodeRedis(RESP) {
  const client = createClient({ socket: { host, port: Number(port) }, password, RESP });
  client.on('error', () => {});
  await client.connect();
  await client.flushAll();
  assert.equal(await client.set('a', '1'), 'OK');
  assert.equal(await client.get('a'), '1');
  assert.equal(await client.get('nothing'), null);
  await client.mSet({ b: '2', c: '3' });
  assert.deepEqual(await client.mGet(['a', 'b', 'nothing']), ['1', '2', null]);
  assert.equal(await client.del(['b', 'nothing']), 1);
  assert.equal(await client.set('e', '1', { expiration: { type: 'PX', value: 30 } }), 'OK');
  await until('it expires', async () => (await client.get('e')) === null);
  assert.deepEqual(await client.multi().set('d', '4').get('d').exec(), ['OK', '4']);
  const pipelined = await Promise.all(Array.from({ length: 500 }, (_, n) => client.set(`k:${n}`, `${n}`)));
  assert.equal(pipelined.length, 500);
  const found = new Set();
  for await (const keys of client.scanIterator({ MATCH: 'k:*', COUNT: 11 })) {
    for (const key of [keys].flat()) found.add(key);
  }
  assert.equal(found.size, 500);
  await refused(() => client.incr('a'), 'counters need a merge type');
  await refused(() => client.sendCommand(['NOTHING']), 'unknown command');
  assert.equal(await client.sendCommand(['WAIT', '0', '10']), 0);
  const listener = client.duplicate();
  await listener.connect();
  const told = [];
  await listener.pSubscribe('__keyevent@0__:*', (message) => told.push(message));
  await client.set('told', '1');
  await until('it is told', async () => told.includes('told'));
  await listener.close();
  await client.close();
}

async function ioRedis() {
  const client = new Redis({ host, port: Number(port), password });
  await client.flushall();
  assert.equal(await client.set('a', '1'), 'OK');
  assert.equal(await client.get('a'), '1');
  assert.deepEqual(await client.mget('a', 'nothing'), ['1', null]);
  assert.deepEqual(await client.pipeline().set('b', '2').get('b').del('b').exec(), [[null, 'OK'], [null, '2'], [null, 1]]);
  assert.deepEqual(await client.multi().set('c', '3').get('c').exec(), [[null, 'OK'], [null, '3']]);
  assert.equal(await client.set('e', '1', 'PX', 30), 'OK');
  await until('it expires', async () => (await client.get('e')) === null);
  const [cursor, keys] = await client.scan(0, 'COUNT', 100);
  assert.equal(cursor, '0');
  assert.deepEqual(keys.sort(), ['a', 'c']);
  await refused(() => client.incr('a'), 'counters need a merge type');
  const listener = client.duplicate();
  const told = [];
  listener.on('message', (_, message) => told.push(message));
  await listener.subscribe('__keyspace@0__:told');
  await client.set('told', '1');
  await until('it is told', async () => told.includes('set'));
  // The connection is closed under it, and it comes back by itself.
  const before = await client.client('ID');
  client.stream.destroy();
  await until('it is back', async () => (await client.client('ID')) !== before);
  assert.equal(await client.get('a'), '1');
  listener.disconnect();
  client.disconnect();
}

await nodeRedis(2);
await nodeRedis(3);
console.log('node-redis', version('redis'), 'is content');
await ioRedis();
console.log('ioredis', version('ioredis'), 'is content');
