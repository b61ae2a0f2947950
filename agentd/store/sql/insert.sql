-- A record of router or gateway that came twice (its answer was lost) is stored once.
INSERT INTO record (at, kind, unit, invocation, actor, reason, message, conversation, source, epoch, seq, detail)
VALUES (:at, :kind, :unit, :invocation, :actor, :reason, :message, :conversation, :source, :epoch, :seq, :detail)
ON CONFLICT DO NOTHING
