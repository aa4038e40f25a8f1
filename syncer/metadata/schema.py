"""The schema of the metadata database; its comments say what the rows mean.

A change of the schema is a change of `SCHEMA`, a version more, and an entry in `UPGRADES`, which
brings a database of the version before to it.
"""

from __future__ import annotations

SCHEMA_VERSION = 8

# What both a new database and an older one get.
_PINS = """
CREATE TABLE pin(              -- what a person wants local always: with all below it, and without
                               -- history, since it concerns this machine alone
  seq INTEGER PRIMARY KEY,     -- where not all fits, the oldest come first
  node INTEGER NOT NULL UNIQUE -- by number, so that a rename keeps it
);

-- What eviction picks from: nothing that the remote lacks, and nothing pinned.
CREATE INDEX block_clean ON block(used) WHERE dirty IS NULL AND pinned = 0;
CREATE INDEX block_pinned ON block(id) WHERE pinned = 1;
CREATE TRIGGER block_pin_changed AFTER UPDATE OF pinned ON block WHEN new.pinned != old.pinned
BEGIN
  UPDATE usage SET pinned_blocks = pinned_blocks + new.pinned - old.pinned,
    pinned_bytes = pinned_bytes + (new.pinned - old.pinned) * ((new.size + 4095) / 4096 * 4096);
END;
CREATE TRIGGER block_pin_gone AFTER DELETE ON block WHEN old.pinned = 1
BEGIN
  UPDATE usage SET pinned_blocks = pinned_blocks - 1,
    pinned_bytes = pinned_bytes - (old.size + 4095) / 4096 * 4096;
END;
"""

#: How many blocks a row of a content has: places but holes, and a tiny file as one.
FILLED_IN_ROW = """
CASE WHEN run < 0 THEN length(data) > 0
  WHEN instr(data, zeroblob(16)) = 0 THEN length(data) / 16 ELSE
  (WITH RECURSIVE place(at) AS
     (SELECT 1 UNION ALL SELECT at + 16 FROM place WHERE at + 16 <= length(data))
   SELECT count(*) FROM place WHERE substr(data, at, 16) NOT IN (x'', zeroblob(16)))
END
"""
#: The same of some rows.
FILLED_BLOCKS = f"coalesce(sum({FILLED_IN_ROW}), 0)"
#: What column node.blocks must be, from the rows of table content.
COUNTED_BLOCKS = f"(SELECT {FILLED_BLOCKS} FROM content WHERE content.node = node.id)"

#: Which past versions of files have a wrong count: (id, died). Along each file's epochs: its rows
#: add their blocks where their lives begin, and take them where they end.
WRONG_PAST_BLOCKS = f"""
SELECT id, died FROM (
  SELECT id, died, said, sum(change) OVER (PARTITION BY id ORDER BY epoch, died) AS counted FROM (
    SELECT id, died - 1 AS epoch, died, blocks AS said, 0 AS change FROM node_past
    WHERE blocks IS NOT NULL
    UNION ALL
    SELECT node, born, 0, NULL, {FILLED_IN_ROW} FROM content_past
    UNION ALL
    SELECT node, died, 0, NULL, -({FILLED_IN_ROW}) FROM content_past
    UNION ALL
    SELECT node, born, 0, NULL, {FILLED_IN_ROW} FROM content
    WHERE EXISTS (SELECT 1 FROM node_past WHERE id = content.node)))
WHERE said != counted
"""

_GARBAGE = """
CREATE TABLE garbage(          -- blocks that nothing names, and that the remote is losing; to name
                               -- one takes its row away and makes it dirty: see blocks/garbage
  id BLOB PRIMARY KEY,
  since_ns INTEGER NOT NULL    -- when that was found; its object goes for good after the grace
) WITHOUT ROWID;
"""

_PROVISIONAL = """
CREATE TABLE provisional(      -- names that were taken away, it may be for a rename that follows
                               -- (over an open file; see vfs/hidden): a crash puts them back
  parent INTEGER NOT NULL,
  name BLOB NOT NULL,
  node INTEGER NOT NULL,       -- what the name led to: an orphan, or a file that has further names
  PRIMARY KEY(parent, name)
) WITHOUT ROWID;
"""

# Their rows may be long. Without rowids SQLite compares whole rows, and to find one it would read
# all pages of a dozen others.
_LONG_ROWS = """
CREATE TABLE content(          -- what a file holds
  node INTEGER NOT NULL,
  run INTEGER NOT NULL,        -- blocks 256 run .. 256 run + 255; or -1: see data
  born INTEGER NOT NULL,
  data BLOB NOT NULL,          -- block ids, 16 bytes each, zeros for a hole; what lies behind
                               -- the last id is a hole. Of run -1: the bytes of a tiny file
                               -- themselves; it then has no other run
  PRIMARY KEY(node, run)
);
CREATE TABLE content_past(
  node INTEGER NOT NULL, run INTEGER NOT NULL, born INTEGER NOT NULL, died INTEGER NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY(node, run, died)
);

CREATE TABLE xattr(
  node INTEGER NOT NULL,
  name BLOB NOT NULL,          -- with its namespace: user.comment
  born INTEGER NOT NULL,
  value BLOB NOT NULL,
  PRIMARY KEY(node, name)
);
CREATE TABLE xattr_past(
  node INTEGER NOT NULL, name BLOB NOT NULL, born INTEGER NOT NULL, died INTEGER NOT NULL,
  value BLOB NOT NULL,
  PRIMARY KEY(node, name, died)
);

CREATE TABLE patch(            -- small fsynced writes that are not yet folded into a block
  node INTEGER NOT NULL,
  seq INTEGER NOT NULL,        -- order of application
  offset INTEGER NOT NULL,     -- in the file, bytes; a patch lies within one block
  data BLOB NOT NULL,
  size INTEGER NOT NULL,       -- of the file with this patch
  mtime_ns INTEGER NOT NULL,   -- and when it was written
  PRIMARY KEY(node, seq)
);

CREATE TABLE undo_run(
  node INTEGER NOT NULL, turn INTEGER NOT NULL, run INTEGER NOT NULL,
  data BLOB,                   -- of table content; NULL: it had no such row. Of node 0: the id
                               -- of a block that was dropped before it was synced
  PRIMARY KEY(node, turn, run)
);
CREATE TABLE undo_patch(       -- all patches that it had
  node INTEGER NOT NULL, turn INTEGER NOT NULL, seq INTEGER NOT NULL,
  offset INTEGER NOT NULL, data BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  PRIMARY KEY(node, turn, seq)
);
"""
_LONG_ROW_TABLES = (
    "content", "content_past", "xattr", "xattr_past", "patch", "undo_run", "undo_patch"
)  # fmt: skip

_UNSYNCED = """
CREATE INDEX block_unsynced ON block(id) WHERE synced = 0 AND dirty IS NOT NULL;
"""

#: For each version but the newest: the statements that make the next one of it.
UPGRADES: dict[int, str] = {
    1: """
ALTER TABLE block ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN pinned_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN pinned_blocks INTEGER NOT NULL DEFAULT 0;
DROP INDEX block_clean;
"""
    + _PINS,
    2: "ALTER TABLE node ADD COLUMN blocks INTEGER NOT NULL DEFAULT 0;"
    f" UPDATE node SET blocks = {COUNTED_BLOCKS};",
    3: _GARBAGE,
    4: _PROVISIONAL
    + """
INSERT INTO provisional SELECT parent, name, node FROM orphan WHERE name IS NOT NULL;
ALTER TABLE orphan DROP COLUMN parent;
ALTER TABLE orphan DROP COLUMN name;
""",
    5: "ALTER TABLE node_past ADD COLUMN blocks INTEGER;",
    # An older program would not know of the redo log either.
    6: "DROP INDEX block_unsynced;" + _UNSYNCED,
    7: "".join(f"ALTER TABLE {name} RENAME TO {name}_before;" for name in _LONG_ROW_TABLES)
    + _LONG_ROWS
    + "".join(
        f"INSERT INTO {name} SELECT * FROM {name}_before; DROP TABLE {name}_before;"
        for name in _LONG_ROW_TABLES
    ),
}

SCHEMA = (
    """
-- Time. Every versioned row carries the epoch in which it became true (born). Tables without
-- "_past" hold what is true now; their "_past" twins hold what was true for born <= e < died.
-- Within one epoch a change overwrites; the first change of a row in a later epoch first copies
-- it to the past. A row whose life would begin and end in the same epoch leaves no trace.

CREATE TABLE meta(             -- single values, by name; see Database.get_meta
  key TEXT PRIMARY KEY,
  value ANY                    -- text, integer or bytes
) WITHOUT ROWID;

CREATE TABLE epoch(            -- the units of history; the open one is the newest
  seq INTEGER PRIMARY KEY,     -- total order within the repository
  machine INTEGER NOT NULL,    -- the machine that made it, 63 bits
  counter INTEGER NOT NULL,    -- that machine's own count of epochs
  time_ns INTEGER NOT NULL     -- when it was opened, since 1970; never goes back
);

CREATE TABLE node(             -- a file, directory, symlink, fifo, socket or device
  id INTEGER PRIMARY KEY,      -- machine tag << 40 | counter; 1 is the root; never reused
  born INTEGER NOT NULL,
  mode INTEGER NOT NULL,       -- type and permission bits, as in st_mode
  uid INTEGER NOT NULL,
  gid INTEGER NOT NULL,
  rdev INTEGER NOT NULL,       -- of devices, else 0
  nlink INTEGER NOT NULL,      -- names; of a directory: 2 + its subdirectories; 0: see orphan
  size INTEGER NOT NULL,       -- bytes; of a symlink: its target's length; of a directory: 0
  atime_ns INTEGER NOT NULL,   -- changed in place: reading makes no history
  mtime_ns INTEGER NOT NULL,
  ctime_ns INTEGER NOT NULL,
  btime_ns INTEGER NOT NULL,   -- birth
  target BLOB,                 -- of a symlink, else NULL
  blocks INTEGER NOT NULL DEFAULT 0 -- of a file: its blocks that are no holes; the bytes of a tiny
                               -- file count as one. Follows from content, so it is not sent
);
CREATE TABLE node_past(
  id INTEGER NOT NULL, born INTEGER NOT NULL, died INTEGER NOT NULL,
  mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, rdev INTEGER NOT NULL,
  nlink INTEGER NOT NULL, size INTEGER NOT NULL, atime_ns INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, btime_ns INTEGER NOT NULL, target BLOB,
  blocks INTEGER,              -- NULL: not known, since another machine's or an older version's
  PRIMARY KEY(id, died)
) WITHOUT ROWID;

CREATE TABLE name(             -- an entry of a directory
  parent INTEGER NOT NULL,
  name BLOB NOT NULL,          -- any bytes but "/" and NUL, 1 to 255 of them
  node INTEGER NOT NULL,
  born INTEGER NOT NULL,
  PRIMARY KEY(parent, name)
) WITHOUT ROWID;
CREATE INDEX name_of_node ON name(node);
CREATE TABLE name_past(
  parent INTEGER NOT NULL, name BLOB NOT NULL, node INTEGER NOT NULL,
  born INTEGER NOT NULL, died INTEGER NOT NULL,
  PRIMARY KEY(parent, name, died)
) WITHOUT ROWID;
CREATE INDEX name_past_of_node ON name_past(node);

-- How files were before changes that a power cut may still take: see `undo`. Emptied by each
-- sync of all blocks, so they hold what changed within seconds. The others are undo_run and
-- undo_patch.

CREATE TABLE undo_file(
  node INTEGER NOT NULL,
  turn INTEGER NOT NULL,       -- the time between two syncs in which it changed first
  size INTEGER NOT NULL,       -- as in the node's row before that
  mtime_ns INTEGER NOT NULL,
  PRIMARY KEY(node, turn)
) WITHOUT ROWID;

CREATE TABLE orphan(           -- files without a name that were open; removed at the next start
  node INTEGER PRIMARY KEY
);

CREATE TABLE block(            -- blocks with a local copy, and only these
  id BLOB PRIMARY KEY,         -- 16 bytes
  size INTEGER NOT NULL,       -- bytes of content, 1 .. 1 MiB
  dirty INTEGER,               -- order of upload, oldest first, while the remote lacks it; or NULL
  refs INTEGER NOT NULL,       -- of a dirty block: how often content (now and past) names it;
                               -- at 0 it is dropped without an upload. Of a clean one: 0, unused
  synced INTEGER NOT NULL,     -- 1: the local file is power-safe
  used INTEGER NOT NULL,       -- order of last use; the smallest is evicted first
  pinned INTEGER NOT NULL DEFAULT 0  -- 1: a pinned file names it, so it is not evicted
) WITHOUT ROWID;
CREATE INDEX block_dirty ON block(dirty) WHERE dirty IS NOT NULL;

CREATE TABLE usage(            -- one row; kept by the transactions that change what it counts
  local_bytes INTEGER NOT NULL,    -- sum of block.size, each in whole pages of 4 KiB
  local_blocks INTEGER NOT NULL,
  dirty_bytes INTEGER NOT NULL,    -- of these, dirty
  dirty_blocks INTEGER NOT NULL,
  inline_bytes INTEGER NOT NULL,   -- sum of the lengths of content with run -1, now and past
  nodes INTEGER NOT NULL,          -- nodes that are there now
  file_bytes INTEGER NOT NULL,     -- sum of the sizes of files that are there now
  pinned_bytes INTEGER NOT NULL DEFAULT 0,   -- of local_bytes, those of pinned blocks
  pinned_blocks INTEGER NOT NULL DEFAULT 0
);
INSERT INTO usage VALUES(0, 0, 0, 0, 0, 0, 0, 0, 0);

CREATE TABLE outbox(           -- what changed in epochs that are not yet published
  epoch INTEGER NOT NULL,
  node INTEGER NOT NULL,       -- with name x'': the node's row, content and xattrs;
  name BLOB NOT NULL,          -- else the entry of this name in directory `node`
  PRIMARY KEY(epoch, node, name)
) WITHOUT ROWID;

CREATE TABLE chunk(            -- checkpoint chunks: nodes of one range of 4096 numbers each
  range INTEGER PRIMARY KEY,   -- node id >> 12; negative ones are of epochs: -1 - seq // 65536
  object BLOB                  -- ids (16 bytes each) of its objects on the remote; NULL: changed
);
"""
    + _LONG_ROWS
    + _PINS
    + _GARBAGE
    + _PROVISIONAL
    + _UNSYNCED
)

#: In place of a boot id: the database was made anew, and block files that nothing names have not
#: got names in lost+found yet.
REBUILT = "rebuilt"

#: The values that `meta` may hold.
META_KEYS = frozenset(
    {
        "schema_version",  # integer
        "uuid",  # the repository's, text
        "seed",  # of all hashes, integer
        "machine",  # this data directory's machine id, 63 bits
        "marks",  # the tokens that data directories under this id may have left, see `identity`
        "next_node",  # the next node number this machine hands out
        "generation",  # of the writer whose history this database holds
        "writer",  # that writer's machine id
        "role",  # "writer", "follower" or "displaced"
        "published",  # the newest epoch that is in a segment on the remote
        "durable",  # the newest epoch of which everything is power-safe
        "far",  # 1: the server was not near when this was mounted last
        "boot",  # the machine's boot id while a process has this open, or REBUILT; "": a clean end
        "checkpoint",  # the newest epoch that is in a checkpoint on the remote
        "pins_stale",  # 1: what pins reach may have changed, or is not all local
        "pruned",  # the decision about kept moments with which the tables are in line
        "policy_ns",  # when the standing policy was last looked after, since 1970
        "sweep_ns",  # when the remote is to be searched for garbage next; 0: not before a prune
        "redo_key",  # under which the last process that wrote here made its redo log, see `redo`
        "redo_sequence",  # of the log's newest transaction that SQLite has committed
        "doubtful",  # 1: the remote may lack blocks that are clean here, so nothing is evicted
        "setback",  # why what is published may not be on the remote any more, see `setback`
        "parent_segment",  # key of the newest segment, which the next one names as its parent
    }
)
