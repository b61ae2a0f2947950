#!/bin/sh
# An agent in plain shell that takes no messages: it prints the time once a minute (or every $EVERY seconds).
# It asks for nothing: no SDK, no channel, no heartbeat. agentd keeps it running, limits it and shows its log.

sleeper=
stop() {
    [ -z "$sleeper" ] || { kill "$sleeper"; wait "$sleeper"; } 2>/dev/null
    echo "stopped"
    exit 0
}
trap stop TERM INT

while :; do
    date -u '+%Y-%m-%dT%H:%M:%SZ'
    sleep "${EVERY:-60}" &
    sleeper=$!
    wait "$sleeper"   # unlike sleep itself, wait lets the trap run at once
    sleeper=
done
