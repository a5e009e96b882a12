/**
 * Loaded first into every service that the demonstration starts (`node --import`): when the demonstration is gone, however
 * it ended, the channel to it closes and the service stops in good order. Without this, `kill -9` of the demonstration
 * would leave five services behind that nobody remembers.
 */
process.once('disconnect', () => process.kill(process.pid, 'SIGTERM'));
// The channel alone keeps no process alive that has nothing else to do.
process.channel?.unref();
