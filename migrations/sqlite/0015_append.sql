-- On PostgreSQL the writes of heads, entries and DEKs become functions with rights of their own; a file has no roles.
SELECT 1;
