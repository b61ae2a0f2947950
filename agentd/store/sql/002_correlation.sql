-- What one request, or one event of the world, led to: all its records carry the same id.
ALTER TABLE record ADD COLUMN correlation TEXT;
CREATE INDEX record_correlation ON record (correlation, at) WHERE correlation IS NOT NULL;
