// Node's own http server with a drain that loses nothing: on SIGTERM stop accepting, answer with
// `Connection: close`, and close idle connections only after a linger. Copied into a release.
'use strict';
const fs = require('node:fs');
const http = require('node:http');
const net = require('node:net');
const path = require('node:path');

const LINGER_MS = 2000;
const BACKLOG = 2048; // Node calls listen() on the shared socket again: its default, 511, would shrink the queue
const { kind, label, boot_s: bootS } = JSON.parse(fs.readFileSync(path.join(__dirname, 'behaviour.json'), 'utf8'));
const release = process.env.DEPLOYER_RELEASE || '-';
const worker = process.env.DEPLOYER_WORKER || '-';

if (kind === 'raises_at_import') throw new Error(`this release is broken on purpose (${label})`);
if (kind === 'third_worker_crashes' && worker === '3') throw new Error('the third worker is broken on purpose');
if (kind === 'exits_zero') process.exit(0);

let draining = false;

function answer(response, status, body) {
  if (draining) response.setHeader('Connection', 'close');
  response.writeHead(status, {
    'Content-Type': 'text/plain',
    'Content-Length': Buffer.byteLength(body),
    'X-Release': release,
    'X-Worker': worker,
    'X-Pid': process.pid,
  });
  response.end(body);
}

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://localhost');
  if (url.pathname === '/healthz') {
    answer(response, kind === 'health_500' ? 500 : 200, kind === 'health_500' ? 'sick\n' : 'ok\n');
  } else if (kind === 'error_500') {
    answer(response, 500, 'broken on purpose\n');
  } else {
    const text = `${label} release ${release} worker ${worker} pid ${process.pid}\n`;
    const pause = url.pathname === '/slow' ? Number(url.searchParams.get('s') || 1) * 1000 : 0;
    if (pause) setTimeout(answer, pause, response, 200, text);
    else answer(response, 200, text);
  }
});
server.keepAliveTimeout = 75000;

// server.closeIdleConnections() passes over connections that never made a request, so idleness is kept here.
const sockets = new Map();
const idleFrom = (socket) => ({ since: Date.now(), read: socket.bytesRead });
server.on('connection', (socket) => {
  sockets.set(socket, idleFrom(socket));
  socket.on('close', () => sockets.delete(socket));
});
server.prependListener('request', ({ socket }, response) => {
  sockets.set(socket, null);
  response.on('close', () => sockets.has(socket) && sockets.set(socket, idleFrom(socket)));
});

function closeIdle() {
  for (const [socket, idle] of sockets) {
    // Bytes read since it fell idle: a request is arriving.
    if (idle && socket.bytesRead === idle.read && Date.now() - idle.since >= LINGER_MS) socket.destroy();
  }
}

process.on('SIGTERM', () => {
  if (kind === 'ignores_sigterm' || draining) return;
  draining = true;
  // http.Server.close() ends idle connections at once (Node 19 and later); net's only stops accepting.
  net.Server.prototype.close.call(server, () => process.exit(0));
  setInterval(closeIdle, 50);
});

function start() {
  if (kind === 'never_ready' || kind === 'never_serves') {
    setInterval(() => {}, 1000);
    return;
  }
  server.listen({ fd: 3 }, BACKLOG, () => {
    console.log(`${label} worker ${worker} serves`);
    if (kind === 'crash_in_soak') setTimeout(() => process.exit(3), 300);
  });
}

setTimeout(start, bootS * 1000);
