// The same Node server as deployer runs (tests/apps/server.js, copied beside this file), as PM2's cluster mode
// wants it: a port in place of descriptor 3, process.send('ready') once it listens, and SIGINT as the word to drain.
'use strict';
const net = require('node:net');

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function onPort(where, backlog, then) {
  if (!where || where.fd !== 3) return listen.apply(this, arguments);
  return listen.call(this, { host: '127.0.0.1', port: Number(process.env.BENCH_PORT), backlog }, () => {
    then();
    process.send('ready');
  });
};
process.on('SIGINT', () => process.emit('SIGTERM'));
require('./server.js');
