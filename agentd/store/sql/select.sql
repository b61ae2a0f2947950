-- A line that begins with AND is left out when its parameter is not given, so that the indexes are used.
SELECT id, at, kind, unit, invocation, actor, reason, message, conversation, source, epoch, seq, correlation, detail
FROM record
WHERE true
AND unit = :unit
AND (kind = :kind OR (kind >= :kind || '.' AND kind < :kind || '/'))
AND at >= :since
AND at <= :until
AND conversation = :conversation
AND message = :message
AND correlation = :correlation
ORDER BY at DESC, id DESC
LIMIT :limit
