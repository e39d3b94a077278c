"""Tables of the storage.

Records are JSON (`fastlane_core.contracts.records`) next to the columns that indexes need. Tasks and jobs are never
removed, so their row numbers have no gaps: a row number is a position in the list, and the highest one the count.
"""

from __future__ import annotations

from fastlane_core.builtin.sqlite.schema import Schema

STORAGE_SCHEMA = Schema(
    component="storage",
    migrations=(
        (
            """
            CREATE TABLE tasks (
                number INTEGER PRIMARY KEY,
                id TEXT NOT NULL UNIQUE,
                created_at REAL NOT NULL,
                modified_at REAL NOT NULL,
                jobs INTEGER NOT NULL
            )
            """,
            # Own words rather than FTS5: not every build has that, and this costs the same.
            """
            CREATE TABLE task_words (
                word TEXT NOT NULL,
                task INTEGER NOT NULL,
                PRIMARY KEY (word, task)
            ) WITHOUT ROWID
            """,
            "CREATE INDEX task_words_by_task ON task_words (task, word)",
            """
            CREATE TABLE jobs (
                number INTEGER PRIMARY KEY,
                task INTEGER NOT NULL,
                id TEXT NOT NULL,
                modified_at REAL NOT NULL,
                executions INTEGER NOT NULL DEFAULT 0,
                revision INTEGER NOT NULL,
                record BLOB NOT NULL
            )
            """,
            "CREATE UNIQUE INDEX jobs_by_id ON jobs (id, task)",
            "CREATE INDEX jobs_by_modification ON jobs (task, modified_at)",
            """
            CREATE TABLE idempotency_keys (
                task INTEGER NOT NULL,
                key TEXT NOT NULL,
                job INTEGER NOT NULL,
                execution TEXT,
                PRIMARY KEY (task, key)
            ) WITHOUT ROWID
            """,
            # AUTOINCREMENT: numbers of removed executions must not come back while their logs are still there.
            """
            CREATE TABLE executions (
                number INTEGER PRIMARY KEY AUTOINCREMENT,
                id TEXT NOT NULL UNIQUE,
                job INTEGER NOT NULL,
                created_at REAL NOT NULL,
                revision INTEGER NOT NULL,
                unfinished INTEGER,
                owes_at REAL,
                removable_at REAL,
                record BLOB NOT NULL
            )
            """,
            "CREATE INDEX executions_by_job ON executions (job, created_at)",
            "CREATE INDEX executions_unfinished ON executions (unfinished) WHERE unfinished IS NOT NULL",
            "CREATE INDEX executions_owing ON executions (owes_at) WHERE owes_at IS NOT NULL",
            "CREATE INDEX executions_removable ON executions (removable_at) WHERE removable_at IS NOT NULL",
            """
            CREATE TABLE log_chunks (
                number INTEGER PRIMARY KEY,
                execution INTEGER NOT NULL,
                sequence INTEGER NOT NULL,
                stream TEXT NOT NULL,
                stream_offset INTEGER NOT NULL,
                position TEXT NOT NULL,
                data BLOB NOT NULL
            )
            """,
            "CREATE UNIQUE INDEX log_chunks_by_sequence ON log_chunks (execution, sequence)",
            "CREATE INDEX log_chunks_by_stream ON log_chunks (execution, stream, sequence)",
            # Logs of removed executions, until their chunks are gone too: a big log goes in many small transactions.
            "CREATE TABLE removed_logs (execution INTEGER PRIMARY KEY)",
            """
            CREATE TRIGGER execution_added AFTER INSERT ON executions BEGIN
                UPDATE jobs SET executions = executions + 1 WHERE number = NEW.job;
            END
            """,
            """
            CREATE TRIGGER execution_removed AFTER DELETE ON executions BEGIN
                UPDATE jobs SET executions = executions - 1 WHERE number = OLD.job;
                INSERT INTO removed_logs VALUES (OLD.number);
            END
            """,
            """
            CREATE TABLE state (
                scope TEXT NOT NULL,
                key TEXT NOT NULL,
                value TEXT NOT NULL,
                revision INTEGER NOT NULL,
                PRIMARY KEY (scope, key)
            ) WITHOUT ROWID
            """,
            # One count over all values: a value that was deleted and made anew never has a revision of the old one.
            "CREATE TABLE state_revision (last INTEGER NOT NULL)",
            "INSERT INTO state_revision VALUES (0)",
        ),
        ("CREATE INDEX executions_unfinished_by_job ON executions (job) WHERE unfinished IS NOT NULL",),
        (
            "ALTER TABLE jobs ADD COLUMN due_at REAL",
            "CREATE INDEX jobs_due ON jobs (due_at) WHERE due_at IS NOT NULL",
        ),
        (
            # Both are null unless it failed for good and nobody has looked at it yet.
            "ALTER TABLE executions ADD COLUMN failed_at REAL",
            "ALTER TABLE executions ADD COLUMN failed_task TEXT",
            "CREATE INDEX executions_failed ON executions (failed_at) WHERE failed_at IS NOT NULL",
            "CREATE INDEX executions_failed_by_task ON executions (failed_task, failed_at) WHERE failed_at IS NOT NULL",
        ),
        (
            "ALTER TABLE tasks ADD COLUMN concurrency INTEGER",
            "CREATE INDEX tasks_limited ON tasks (number) WHERE concurrency IS NOT NULL",
        ),
    ),
)
