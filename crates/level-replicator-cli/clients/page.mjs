// The page of real daemons in a real browser: node page.mjs TOOL DIRECTORY
//
// Fails on any error of the page, on a request that fails, on text with too little contrast, and on sideways scrolling on a phone.
import assert from 'node:assert/strict';
import { spawn, execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const [tool, pictures] = process.argv.slice(2);
const work = mkdtempSync(join(tmpdir(), 'level-replicator-page-'));
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const until = async (what, ask, ms = 30_000) => {
  const deadline = Date.now() + ms;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    assert.ok(Date.now() < deadline, what);
    await sleep(100);
  }
};

const daemons = [];
const start = async (name, ...more) => {
  const child = spawn(tool, ['serve', '--path', join(work, name), '--cluster', 'shop', '--no-multicast', '--listen', '127.0.0.1:0',
    '--resp', '127.0.0.1:0', ...(more.includes('--http') ? [] : ['--http', '127.0.0.1:0']), ...more], { stdio: ['ignore', 'pipe', 'ignore'] });
  daemons.push(child);
  const line = await new Promise((resolve, reject) => {
    let said = '';
    child.stdout.on('data', (data) => { said += data; if (said.includes('\n')) resolve(said); });
    child.on('exit', () => reject(new Error(`${name} ended: ${said}`)));
  });
  const words = Object.fromEntries(line.trim().split(' ').slice(1).map((word) => word.split(/=(.*)/s)));
  const url = `http://${words.http}`;
  return {
    ...words, url, child,
    run: (...args) => execFileSync(tool, [...args, '--at', words.resp], { encoding: 'utf8' }),
    status: async () => (await fetch(`${url}/status`)).json(),
  };
};

/** Writes keys at a changing pace until it is told to end. */
const load = (daemon) => {
  const socket = createConnection(daemon.resp.split(':')[1], '127.0.0.1');
  let number = 0;
  socket.on('data', () => {});
  socket.on('error', () => {});
  const timer = setInterval(() => {
    const writes = 20 + Math.round(16 * Math.sin(number / 350) + 6 * Math.random());
    for (let some = 0; some < writes; some += 1, number += 1) {
      const words = ['SET', `order:${number % 4000}`, `{"state":"paid","cents":${1000 + number}}`];
      socket.write(`*3\r\n${words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join('')}`);
    }
  }, 100);
  return () => { clearInterval(timer); socket.end(); };
};

/** Every visible text with less contrast than 4.5 to 1. Runs in the page. */
const faint = () => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return { r, g, b, a };
  };
  const over = (top, below) => {
    const mix = (one) => top[one] * top.a + below[one] * (1 - top.a);
    return { r: mix('r'), g: mix('g'), b: mix('b'), a: 1 };
  };
  const light = ({ r, g, b }) => {
    const part = (value) => { const share = value / 255; return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (node) => {
    const layers = [];
    for (let one = node; one; one = one.parentElement) layers.push(parse(getComputedStyle(one).backgroundColor));
    const dark = matchMedia('(prefers-color-scheme: dark)').matches;
    return layers.reverse().reduce((below, top) => over(top, below), dark ? { r: 0, g: 0, b: 0, a: 1 } : { r: 255, g: 255, b: 255, a: 1 });
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  let texts = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const parent = walker.currentNode.parentElement;
    if (!text || ['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(parent.tagName) || !parent.checkVisibility()) continue;
    texts += 1;
    const below = ground(parent);
    const [a, b] = [light(over(parse(getComputedStyle(parent).color), below)), light(below)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push(`${contrast.toFixed(2)}: ${text.slice(0, 60)}`);
  }
  return { texts, found };
};

/** What reaches beyond the window. Runs in the page. */
const wide = () => {
  const width = document.documentElement.clientWidth;
  const out = [...document.body.querySelectorAll('*')].filter((node) => {
    if (!node.checkVisibility() || node.closest('svg, thead')) return false;
    return node.getBoundingClientRect().right > width + 0.5;
  });
  return { scrolls: document.documentElement.scrollWidth > width, out: out.map((node) => `${node.tagName} ${node.textContent.slice(0, 40)}`) };
};

const browser = await chromium.launchPersistentContext(join(work, 'browser'), {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  headless: true,
  chromiumSandbox: false,
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  reducedMotion: 'reduce',
});
const faults = [];
let ends = false;
try {
  const a = await start('a');
  const b = await start('b', '--peer', a.listen);
  const c = await start('c', '--peer', a.listen);
  const lines = Array.from({ length: 4000 }, (_, number) => JSON.stringify({ key: `item:${number}`, value: `a thing for sale, number ${number}` }));
  execFileSync(tool, ['import', '-', '--at', a.resp], { input: lines.join('\n') });
  const two = (status) => status.peers.length >= 2 && status.peers.every((peer) => peer.replica && !peer.failures);
  await until('a cluster', async () => (await Promise.all([a, b, c].map((one) => one.status()))).every((status) => status.keys >= 4000 && two(status)));

  const page = await browser.newPage();
  page.on('console', (message) => { if (!ends && ['error', 'warning'].includes(message.type())) faults.push(`console: ${message.text()}`); });
  page.on('pageerror', (error) => faults.push(`page: ${error.message}`));
  page.on('requestfailed', (request) => { if (!ends) faults.push(`request: ${request.url()} ${request.failure()?.errorText}`); });
  page.on('response', (response) => { if (response.status() >= 400) faults.push(`response: ${response.url()} ${response.status()}`); });
  page.on('request', (request) => { if (!request.url().startsWith(a.url) && !request.url().startsWith('data:')) faults.push(`asks elsewhere: ${request.url()}`); });
  await page.setViewportSize({ width: 1180, height: 900 });
  const response = await page.goto(a.url);
  assert.match(response.headers()['content-security-policy'], /script-src 'sha256-/);

  const sentence = () => page.locator('#sentence').textContent();
  const says = (words) => until(`the page says '${words}'`, async () => (await sentence()).includes(words)).catch(async (error) => {
    throw new Error(`${error.message}, but: ${await sentence()}`);
  });
  const desk = { width: 1180, height: 900 }, phone = { width: 360, height: 780 };
  const picture = async (name, size = desk, colorScheme = 'light') => {
    // Of a phone what fits it, of a desk all.
    await page.setViewportSize(size);
    await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
    await page.screenshot({ path: join(pictures, `${name}.png`), fullPage: size === desk });
  };
  /** Contrast in both schemes, and no sideways scrolling on a phone, in this state. */
  const check = async (name) => {
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
      const { texts, found } = await page.evaluate(faint);
      assert.ok(texts > 20, `${name}: ${texts} texts`);
      for (const text of found) faults.push(`contrast, ${name}, ${colorScheme}, ${text}`);
    }
    await page.setViewportSize(phone);
    const { scrolls, out } = await page.evaluate(wide);
    if (scrolls || out.length > 0) faults.push(`sideways, ${name}: ${out.join(' | ')}`);
    await page.setViewportSize(desk);
    await page.emulateMedia({ colorScheme: 'light', reducedMotion: 'reduce' });
  };

  const calm = load(a);
  await says('All is well');
  await sleep(14_000);
  await says('All is well');
  await picture('healthy');
  await picture('healthy-dark', desk, 'dark');
  await picture('healthy-phone', phone);
  await check('healthy');

  // The keyboard reaches the button, which holds the page still and lets it go on.
  await page.evaluate(() => document.activeElement.blur());
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'hold');
  await page.keyboard.press('Enter');
  const keys = await page.locator('#tiles dd').first().textContent();
  a.run('put', 'another', 'key');
  await sleep(1_500);
  assert.equal(await page.locator('#tiles dd').first().textContent(), keys);
  assert.match(await page.locator('#pulse').textContent(), /held still/);
  await page.keyboard.press('Enter');
  await until('it goes on', async () => /live/.test(await page.locator('#pulse').textContent()));
  await page.evaluate(() => document.activeElement.blur());

  // Two replicas that do not talk write one key.
  b.run('pause');
  a.run('put', 'greeting', 'good morning');
  b.run('put', 'greeting', 'good evening');
  b.run('resume');
  await says('concurrent values');
  await picture('conflict');
  await check('conflict');
  a.run('resolve', 'greeting', 'good day');
  await says('All is well');

  // A peer that takes nothing any more.
  c.child.kill('SIGSTOP');
  await says('is behind');
  await picture('lagging');
  await check('lagging');
  c.child.kill('SIGCONT');
  await says('All is well');
  calm();

  a.run('pause');
  await says('Paused');
  await check('paused');
  a.run('resume');
  await says('All is well');

  // What is rare: the status is that of the daemon, but for some words.
  const rare = async (name, words, change, happened = []) => {
    await page.route('**/status', async (route) => {
      const status = await a.status();
      change(status);
      await route.fulfill({ json: status });
    });
    await page.route('**/recent', (route) => route.fulfill({ json: happened.map((what) => ({ at_ms: Date.now() - 5_000, times: 1, ...what })) }));
    await says(words);
    await check(name);
    await page.unroute('**/status');
    await page.unroute('**/recent');
  };
  const evil = '<img src=x onerror=alert(1)>', replica = 'f'.repeat(32), long = `a-very-long-name-of-a-machine.${'x'.repeat(60)}.example.org:65535`;
  await rare('alarm', 'engine may be stuck', (status) => { status.storage.alarm = true; status.storage.stalls = 3; status.storage.stalled_us = 5e6; });
  await rare('healing', 'being healed', (status) => { status.sync_state = 'healing'; status.keys = status.conflicts = status.digest = null; });
  await rare('catching up', 'Catching up', (status) => { status.sync_state = 'catching up'; });
  await rare('counting', 'keys are being counted', (status) => { status.keys = status.conflicts = status.deletes_waiting = status.log_entries = null; });
  await rare('held back', 'Deletes wait for member ffffffff', (status) => {
    Object.assign(status.reclaim, { epoch_open: true, epoch_age_ms: 9e6, held_back_by: [{ replica, silent_ms: 8e6 }], reclaiming: true });
    status.members.push({ replica, self: false, retired: false, excluded: false, admitted_by: replica, seen_at_ms: Date.now() - 8e6 });
  });
  await rare('excluded', '1 member was silent for the horizon', (status) => {
    status.members.push({ replica, self: false, retired: false, excluded: true, admitted_by: replica, seen_at_ms: Date.now() - 2e9 });
    status.members.push({ replica: 'e'.repeat(32), self: false, retired: true, excluded: false, admitted_by: replica, seen_at_ms: null });
  });
  await rare('skew', 'clock is ahead', () => {}, [{ what: 'clock skew', whom: replica, text: 'its clock is 90000 ms ahead of ours' }]);
  await rare('divergence', 'held different contents', () => {}, [
    { what: 'clock skew', whom: replica, text: 'its clock is 90000 ms ahead of ours' },
    { what: 'divergence', whom: replica, text: 'it held other values for the same writes' },
    { what: 'error', whom: null, text: 'no space left on device' },
  ]);
  await rare('alone', 'this replica is alone', (status) => { status.peers = []; status.members = status.members.filter((member) => member.self); status.listen = null; });
  await rare('one peer', 'its peer is reached', (status) => { status.peers.length = 1; });
  await rare('foreign words', `Peer ${evil} cannot be reached`, (status) => {
    status.cluster = `${evil}${'c'.repeat(200)}`;
    Object.assign(status.peers[0], { address: evil, failures: 4, connected: false, replica: null, lag_writes: 123456789 });
    Object.assign(status.peers[1], { address: long });
  }, [{ what: 'error', whom: evil, text: `${evil} ${'y'.repeat(250)}`, times: 12 }]);
  assert.equal(await page.locator('img').count(), 0);
  await rare('elsewhere', 'All is well', (status) => {
    status.peers.push({ ...status.peers[0], address: long, connected: false, failures: 9 });
  });
  await says('All is well');

  // Everybody else is gone.
  b.child.kill('SIGKILL');
  c.child.kill('SIGKILL');
  await says('None of 2 peers');
  await picture('cut');
  await picture('cut-dark', desk, 'dark');
  await picture('cut-phone', phone);
  await check('cut');

  assert.deepEqual(faults, []);
  ends = true;
  a.child.kill('SIGTERM');
  await says('has not answered since');
  await picture('lost');
  await check('lost');

  // It is back: the page goes on.
  await start('a', '--http', a.http);
  await until('the page goes on', async () => !(await sentence()).includes('has not answered'));
  assert.deepEqual(faults, []);
  console.log('the page is content');
} finally {
  await browser.close();
  for (const child of daemons) child.kill('SIGKILL');
  await sleep(200);
  rmSync(work, { recursive: true, force: true });
}
