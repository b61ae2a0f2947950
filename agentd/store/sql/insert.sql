-- A record of router or gateway that came twice (its answer was lost) is stored once.
INSERT INTO record (at, kind, unit, invocation, actor, reason, message, conversation, source, epoch, seq, correlation, detail)
VALUES (:at, :kind, :unit, :invocation, :actor, :reason, :message, :conversation, :source, :epoch, :seq, :correlation,
    :detail)
ON CONFLICT DO NOTHING
