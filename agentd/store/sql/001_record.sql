-- The journal: one row is one thing that happened. What every record has is a column; the rest is JSON in detail.
CREATE TABLE record (
    id           INTEGER PRIMARY KEY,
    at           REAL NOT NULL,              -- wall clock, unix seconds
    kind         TEXT NOT NULL,              -- unit.running, message.sent, call.ended …
    unit         TEXT,
    invocation   TEXT,
    actor        TEXT,
    reason       TEXT,
    message      TEXT,
    conversation TEXT,
    source       TEXT NOT NULL,              -- daemon, router, gateway
    epoch        TEXT,                       -- of the source; with seq it names a record for ever
    seq          INTEGER,
    detail       TEXT NOT NULL
);
CREATE UNIQUE INDEX record_once ON record (source, epoch, seq) WHERE seq IS NOT NULL;
CREATE INDEX record_at ON record (at);
CREATE INDEX record_unit ON record (unit, at) WHERE unit IS NOT NULL;
CREATE INDEX record_message ON record (message, at) WHERE message IS NOT NULL;
CREATE INDEX record_conversation ON record (conversation, at) WHERE conversation IS NOT NULL;
