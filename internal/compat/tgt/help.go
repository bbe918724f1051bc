package tgt

const tgtadmHelp = `tgtadm, as of tgt ` + compatVersion + `: administration of a running tgtd

Usage: tgtadm [--lld iscsi] --mode MODE --op OPERATION [OPTION]...

Targets
  --mode target --op new --tid N --targetname IQN
  --mode target --op delete --tid N [--force]       --force: also under sessions
  --mode target --op show [--tid N]                 all targets, or the parameters of one
  --mode target --op update --tid N --name KEY --value VALUE
  --mode target --op bind|unbind --tid N --initiator-address ALL|ADDRESS|NETWORK
  --mode target --op bind|unbind --tid N --initiator-name IQN
  --mode target --op stat --tid N

Logical units
  --mode logicalunit --op new --tid N --lun N --backing-store PATH
      [--bstype rdwr|aio|null|...] [--bsopts OPTIONS] [--bsoflags sync|direct|sync:direct]
      [--blocksize BYTES] [--device-type disk]
  --mode logicalunit --op delete --tid N --lun N    the data stay
  --mode logicalunit --op update --tid N --lun N --params KEY=VALUE[,KEY=VALUE]...
  --mode logicalunit --op stat --tid N --lun N

CHAP accounts
  --mode account --op new --user NAME --password SECRET
  --mode account --op delete --user NAME
  --mode account --op show
  --mode account --op bind|unbind [--tid N] --user NAME [--outgoing]
                                                    without --tid: for discovery

Portals
  --mode portal --op new|delete --param portal=ADDRESS[:PORT]
  --mode portal --op show

Sessions and connections
  --mode connection --op show --tid N
  --mode connection --op stat --sid N [--cid N]
  --mode connection --op delete --tid N --sid N --cid N
  --mode session --op stat --sid N

The daemon
  --mode system --op show|stat
  --mode system --op update --name State --value ready|offline
  --mode system --op delete                         ends it; refused while there are targets
  --mode lld --op show

Other options
  --control-port N    the tgtd to talk to (default 0)
  --version, --help

The control socket is /var/run/tgtd/socket.N; TGT_IPC_SOCKET replaces what
comes before the dot.
`

const tgtdHelp = `tgtd, as of tgt ` + compatVersion + `: the target daemon

Usage: tgtd [OPTION]...
  -f, --foreground        stay in the foreground and log to standard error
  -D, --nodaemonize       stay in the foreground and log to the system log
  -C, --control-port N    use control socket N (default 0)
  -t, --nr_iothreads N    accepted; I/O threads are not counted by unit here
  -p, --pid-file FILE     write the process id to FILE
  -d, --debug 0|1         log more
      --iscsi LIST        portal=ADDRESS[:PORT] (repeatable), nop_interval=SECONDS,
                          nop_count=N, separated by commas; without a portal
                          0.0.0.0:3260 and [::]:3260
      --state DIR         where targets, units and accounts are kept (default:
                          $BLOCKGATE_STATE, or /var/lib/blockgate)
  -V, --version           print the version and exit
  -h, --help              print this help and exit
`
