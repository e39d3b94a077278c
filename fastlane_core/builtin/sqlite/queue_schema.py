"""Tables of the queue.

An item is one row for its whole stay: waiting, delayed, held or leased. Each state has an index of its own that holds
nothing else, so a claim costs the same however many items wait, are delayed or held, or are leased in other lanes.
"""

from __future__ import annotations

from typing import Final

from fastlane_core.builtin.sqlite.schema import Schema

#: Topics kept for other processes to read.
TOPICS_KEPT: Final = 1_000

QUEUE_SCHEMA = Schema(
    component="queue",
    migrations=(
        (
            """
            CREATE TABLE lanes (
                number INTEGER PRIMARY KEY,
                name TEXT NOT NULL UNIQUE,
                waiting INTEGER NOT NULL DEFAULT 0,
                delayed INTEGER NOT NULL DEFAULT 0,
                leased INTEGER NOT NULL DEFAULT 0,
                changes INTEGER NOT NULL DEFAULT 0
            )
            """,
            # `number` is the order of arrival; it stays when an item is released.
            """
            CREATE TABLE items (
                number INTEGER PRIMARY KEY,
                execution_id TEXT NOT NULL UNIQUE,
                task_id TEXT NOT NULL,
                lane INTEGER NOT NULL,
                priority INTEGER NOT NULL,
                due_at REAL NOT NULL,
                state TEXT NOT NULL,
                worker TEXT,
                token TEXT,
                place TEXT,
                expires_at REAL,
                stop INTEGER NOT NULL DEFAULT 0
            )
            """,
            "CREATE INDEX items_waiting ON items (lane, priority DESC) WHERE state = 'waiting'",
            "CREATE INDEX items_delayed ON items (lane, due_at) WHERE state = 'delayed'",
            "CREATE INDEX items_leased ON items (lane, expires_at) WHERE state = 'leased'",
            "CREATE INDEX items_placed ON items (lane, place) WHERE state = 'leased'",
            # `changes` counts what may make something claimable.
            """
            CREATE TRIGGER item_added AFTER INSERT ON items BEGIN
                UPDATE lanes SET
                    waiting = waiting + (NEW.state = 'waiting'),
                    delayed = delayed + (NEW.state = 'delayed'),
                    leased = leased + (NEW.state = 'leased'),
                    changes = changes + 1
                WHERE number = NEW.lane;
            END
            """,
            """
            CREATE TRIGGER item_changed AFTER UPDATE OF state ON items BEGIN
                UPDATE lanes SET
                    waiting = waiting + (NEW.state = 'waiting') - (OLD.state = 'waiting'),
                    delayed = delayed + (NEW.state = 'delayed') - (OLD.state = 'delayed'),
                    leased = leased + (NEW.state = 'leased') - (OLD.state = 'leased'),
                    changes = changes + (OLD.state = 'leased')
                WHERE number = NEW.lane;
            END
            """,
            """
            CREATE TRIGGER item_removed AFTER DELETE ON items BEGIN
                UPDATE lanes SET
                    waiting = waiting - (OLD.state = 'waiting'),
                    delayed = delayed - (OLD.state = 'delayed'),
                    leased = leased - (OLD.state = 'leased'),
                    changes = changes + (OLD.state = 'leased')
                WHERE number = OLD.lane;
            END
            """,
            # Holds a row once the queue was filled from storage; a new or emptied file has none.
            "CREATE TABLE rebuilt (number INTEGER PRIMARY KEY)",
            "CREATE TABLE topics (sequence INTEGER PRIMARY KEY, origin TEXT NOT NULL, topic TEXT NOT NULL)",
        ),
        (
            # `rank` is the order within a lane: a time, less what the priority is worth. `held_by` is a key.
            "ALTER TABLE items ADD COLUMN rank REAL NOT NULL DEFAULT 0",
            "ALTER TABLE items ADD COLUMN limited INTEGER NOT NULL DEFAULT 0",
            "ALTER TABLE items ADD COLUMN held_by TEXT",
            "ALTER TABLE lanes ADD COLUMN held INTEGER NOT NULL DEFAULT 0",
            "UPDATE items SET rank = max(due_at, CAST(strftime('%s', 'now') AS REAL)) - 600 * priority",
            "DROP INDEX items_waiting",
            "CREATE INDEX items_waiting ON items (lane, rank) WHERE state = 'waiting'",
            "CREATE INDEX items_held ON items (held_by, rank) WHERE state = 'held'",
            "CREATE INDEX items_held_in_lane ON items (lane, rank) WHERE state = 'held'",
            # Counts the leases of a task; those under other keys are counted below.
            "CREATE INDEX items_leased_of_task ON items (task_id) WHERE state = 'leased'",
            """
            CREATE TABLE item_limits (
                item INTEGER NOT NULL,
                position INTEGER NOT NULL,
                key TEXT NOT NULL,
                capacity INTEGER NOT NULL,
                leased INTEGER NOT NULL,
                PRIMARY KEY (item, position)
            ) WITHOUT ROWID
            """,
            "CREATE INDEX item_limits_leased ON item_limits (key) WHERE leased",
            "CREATE TABLE capacities (key TEXT PRIMARY KEY, capacity INTEGER NOT NULL) WITHOUT ROWID",
            "DROP TRIGGER item_added",
            """
            CREATE TRIGGER item_added AFTER INSERT ON items BEGIN
                UPDATE lanes SET
                    waiting = waiting + (NEW.state = 'waiting'),
                    delayed = delayed + (NEW.state = 'delayed'),
                    held = held + (NEW.state = 'held'),
                    leased = leased + (NEW.state = 'leased'),
                    changes = changes + (NEW.state <> 'held')
                WHERE number = NEW.lane;
            END
            """,
            "DROP TRIGGER item_changed",
            """
            CREATE TRIGGER item_changed AFTER UPDATE OF state ON items BEGIN
                UPDATE lanes SET
                    waiting = waiting + (NEW.state = 'waiting') - (OLD.state = 'waiting'),
                    delayed = delayed + (NEW.state = 'delayed') - (OLD.state = 'delayed'),
                    held = held + (NEW.state = 'held') - (OLD.state = 'held'),
                    leased = leased + (NEW.state = 'leased') - (OLD.state = 'leased'),
                    changes = changes + (OLD.state IN ('leased', 'held'))
                WHERE number = NEW.lane;
            END
            """,
            "DROP TRIGGER item_removed",
            """
            CREATE TRIGGER item_removed AFTER DELETE ON items BEGIN
                UPDATE lanes SET
                    waiting = waiting - (OLD.state = 'waiting'),
                    delayed = delayed - (OLD.state = 'delayed'),
                    held = held - (OLD.state = 'held'),
                    leased = leased - (OLD.state = 'leased'),
                    changes = changes + (OLD.state = 'leased')
                WHERE number = OLD.lane;
            END
            """,
            """
            CREATE TRIGGER limited_item_changed AFTER UPDATE OF state ON items
            WHEN NEW.limited AND (NEW.state = 'leased') <> (OLD.state = 'leased') BEGIN
                UPDATE item_limits SET leased = (NEW.state = 'leased') WHERE item = NEW.number;
            END
            """,
            """
            CREATE TRIGGER limited_item_removed AFTER DELETE ON items WHEN OLD.limited BEGIN
                DELETE FROM item_limits WHERE item = OLD.number;
            END
            """,
        ),
    ),
)
