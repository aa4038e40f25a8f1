"""Steps and checks that the promises rest on, each with the test that fails without it.

    python -m tests.mutations             takes each out of a copy of the program, and runs its test
    python -m tests.mutations clean       only those whose words hold "clean"
    python -m tests.mutations --table     prints the table in docs/reliability.md

A mutation that no test notices is a promise that no test keeps.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_COPIED = ("syncer", "tests", "setup.cfg", "setup.py", "docs", "scripts")
_TESTS_FAILED = 1
"""pytest's exit status; others mean that it did not come to run them."""
_TEST_SECONDS = 900.0


@dataclass(frozen=True)
class Mutation:
    """One step or check, and what stands in its place."""

    promise: int
    """Its number in docs/reliability.md."""
    what: str
    file: str
    old: str
    new: str
    test: str
    """As pytest takes it."""


_OPENFILE, _LEDGER, _STORE = "vfs/openfile.py", "blocks/ledger.py", "blocks/store.py"
_UNDO, _PUBLISH, _COMMITTER = "metadata/undo.py", "exchange/publish.py", "process/committer.py"
_PRUNE, _SWEEP, _PRUNING = "maintain/prune.py", "maintain/sweep.py", "metadata/pruning.py"
_SNAPSHOTS, _KNOWN = "vfs/snapshots.py", "metadata/known.py"
_POWER = "faults/test_power.py::test_a_power_cut_leaves_what_was_synced_and_nothing_wrong"
_SERVER_POWER = (
    "faults/test_server_power.py::test_a_power_cut_of_the_server_loses_nothing_that_only_it_had"
)

_SEGMENTS_POWER = (
    "faults/test_segments_power.py::test_a_rebuilding_after_a_power_cut_has_what_the_last_round_had"
)

MUTATIONS = (
    Mutation(
        1, "replaced blocks go without a sync of what replaces them", _LEDGER,
        "            self.sync_all()\n            self._unlink(dropped)",
        "            self._unlink(dropped)",
        "test_blocks.py::test_a_dropped_blocks_file_stays_until_its_replacement_is_safe",
    ),
    Mutation(
        1, "epochs are published before their blocks", _PUBLISH,
        "if missing is not None and not is_ahead:", "if False:",
        "test_exchange.py::test_an_epoch_waits_for_its_blocks",
    ),
    Mutation(
        1, "what is published is not power-safe here", _PUBLISH,
        "        self._db.sync()\n        if not self._looks.first():",
        "        if not self._looks.first():",
        "test_exchange.py::test_what_is_published_is_power_safe_first",
    ),
    Mutation(
        1, "epochs are published before their blocks are on the local disk", _PUBLISH,
        "return min(closed, durable)", "return closed",
        "test_exchange.py::test_what_is_not_power_safe_here_is_not_published",
    ),
    Mutation(
        2, "eviction takes dirty blocks", _LEDGER,
        "SELECT id, size FROM block WHERE dirty IS NULL AND pinned = 0",
        "SELECT id, size FROM block WHERE pinned = 0",
        "test_blocks.py::test_dirty_blocks_are_never_evicted",
    ),
    Mutation(
        2, "eviction takes blocks in use", _LEDGER,
        "if block_id not in self._holds and block_id not in self._removing:",
        "if block_id not in self._removing:",
        "test_blocks.py::test_blocks_in_use_are_not_evicted",
    ),
    Mutation(
        2, "eviction takes what is pinned", _LEDGER,
        "FROM block WHERE dirty IS NULL AND pinned = 0",
        "FROM block WHERE dirty IS NULL",
        "test_pins.py::test_what_is_pinned_is_fetched_and_not_evicted",
    ),
    Mutation(
        2, "what is written below a pin is marked later", "vfs/pinning.py",
        "    absent, refused_bytes = blocks.pinned.mark(placed)\n",
        "    tree.pins.loosen()\n    return\n    absent, refused_bytes = [b\"\"], 0\n",
        "test_pins.py::test_what_is_written_in_a_pinned_folder_is_pinned_at_once",
    ),
    Mutation(
        2, "what is renamed during a pass loses its mark", "transfer/keeper.py",
        "            while wanted := self._pins.take_wanted():\n"
        "                self._mark(wanted)\n",
        "            self._pins.take_wanted()\n",
        "test_pins.py::test_a_file_that_moves_behind_a_passes_back_keeps_its_mark",
    ),
    Mutation(
        2, "files go before their clean marks are on the disk", _LEDGER,
        "            self._db.sync()\n            self.cache.remove(batch)",
        "            self.cache.remove(batch)",
        "test_blocks.py::test_the_clean_mark_is_power_safe_before_the_file_goes",
    ),
    Mutation(
        2, "an upload that the server can't sync counts at once", "transfer/uploads.py",
        "if not is_safe:", "if False:",
        "test_transfer.py::"
        "test_without_a_sync_on_the_remote_a_block_stays_dirty_until_it_settled",
    ),
    Mutation(
        2, "nobody looks whether an object has settled", "transfer/uploads.py",
        "if not there:", "if False:",
        "test_transfer.py::test_what_did_not_survive_its_settling_is_uploaded_again",
    ),
    Mutation(
        2, "an object is not synced", "remote/local.py",
        "                os.fsync(self._descriptor)\n", "",
        "test_remote_local.py::test_everything_is_synced_before_put_returns",
    ),
    Mutation(
        2, "an object is not synced on the server", "remote/sftp.py",
        "sync = send_sync(session, self._handle)",
        # FSETSTAT of nothing, which succeeds.
        "sync = session.send(10, self._handle, 0)", _SERVER_POWER,
    ),
    Mutation(
        2, "an object's folder is not synced on the server", "remote/syncing.py",
        "for handle in self._handles)\n", "for handle in ())\n", _SERVER_POWER,
    ),
    Mutation(
        2, "an object's folder is not synced", "remote/local.py",
        "all(_sync_folder(self._root / folder) for folder in self._folders)", "True",
        _SERVER_POWER,
    ),
    Mutation(
        2, "a new folder's name is not synced", "remote/files.py",
        "return [*unsafe, above[-1]]", "return [above[-1]]", "test_remote_syncing.py::"
        "test_the_object_is_synced_before_the_rename_and_its_folders_after_it",
    ),
    Mutation(
        2, "a block is clean before it is on the server", "transfer/uploads.py",
        "        return object_bytes, self._remote.put(",
        "        self._blocks.mark_clean([block_id])\n"
        "        return object_bytes, self._remote.put(", _SERVER_POWER,
    ),
    Mutation(
        2, "an object's size is not compared", "remote/files.py",
        "if file.size_bytes != size_bytes:", "if False:",
        "test_remote_session.py::test_a_write_that_was_cut_short_shows_in_the_size",
    ),
    Mutation(
        2, "nobody asks whether the repository is the right one", "remote/files.py",
        "        if not is_expected:\n            raise ForeignError(",
        "        if False:\n            raise ForeignError(",
        "test_server_changes.py::test_nothing_is_uploaded_into_another_repository",
    ),
    Mutation(
        2, "after an outage nobody asks again", "remote/files.py",
        "                self._forget_places()\n                raise\n",
        "                raise\n",
        "test_remote_sftp.py::"
        "test_after_an_outage_and_on_each_connection_it_is_asked_whether_it_is_the_right_one",
    ),
    Mutation(
        2, "blocks are evicted before a server that went back was looked at", "blocks/ledger.py",
        "            if self.doubt.is_on():\n                return []\n", "",
        "test_server_changes.py::test_before_the_server_was_looked_at_nothing_is_evicted",
    ),
    Mutation(
        2, "what a server has lost that went back counts as clean", "blocks/doubt.py",
        "if sizes.get(block_id.hex()) != codec.header_bytes(size_bytes) + size_bytes", "if False",
        "test_server_changes.py::test_so_it_is_if_it_goes_back_while_nobody_looks",
    ),
    Mutation(
        3, "an unmounted disk counts as empty", "remote/files.py",
        "            if key != CONFIG_KEY:\n                self._require_repository(files)\n", "",
        "test_remote_local.py::test_a_disk_that_is_not_mounted_is_offline_and_not_empty",
    ),
    Mutation(
        3, "a block that is nowhere reads as nothing", _STORE,
        "            if content is None:\n                raise\n",
        "            if content is None:\n                return b''\n",
        "test_blocks.py::test_a_block_that_is_nowhere_is_missing",
    ),
    Mutation(
        4, "what was read counts as verified because a later file is", _STORE,
        "if content is None or (was_verified and self.cache.is_verified(block_id)):",
        "if content is None or self.cache.is_verified(block_id):",
        "test_blocks.py::test_who_reads_a_damaged_copy_while_another_mends_it_gets_no_damaged_byte",
    ),
    Mutation(
        4, "a block's open file is read though somebody wrote to it", "blocks/cache.py",
        "            if _stamp(os.fstat(file.descriptor)) == stamp:\n", "            if file:\n",
        "test_cache.py::test_a_verified_file_that_somebody_writes_to_is_verified_no_more",
    ),
    Mutation(
        6, "larger files fill the room of the smallest", "vfs/buffers.py",
        "return size_bytes * _INLINE_SHARE <= self", "return size_bytes <= self",
        "test_openfile.py::"
        "test_tiny_files_become_blocks_when_there_are_too_many_the_larger_ones_first",
    ),
    Mutation(
        6, "uploads wait though room is short", "transfer/threads.py",
        "return not self._remote.is_far and 2 * budget.used_bytes < budget.limit_bytes",
        "return not self._remote.is_far",
        "test_transfer.py::test_uploads_do_not_wait_where_room_is_short",
    ),
    Mutation(
        6, "a removed block's file stays open, and takes room", "blocks/cache.py",
        "                closed = self._open_files.pop(block_id, None)\n", "",
        "test_cache.py::test_a_removed_file_is_not_kept_open",
    ),
    Mutation(
        4, "local files are not verified", _STORE,
        "return fits and codec.block_id(content, self.seed) == block_id", "return fits",
        "test_blocks.py::test_a_damaged_local_copy_is_fetched_again_and_set_aside",
    ),
    Mutation(
        4, "fetched pieces are not verified", "codec.py",
        "        decode_piece(header, piece, body[start : start + PIECE_BYTES], seed)\n",
        "        pass\n",
        "test_codec.py::test_a_changed_byte_anywhere_is_noticed",
    ),
    Mutation(
        4, "a segment need not continue the one before it", "exchange/recover.py",
        'if segment.parent != self._db.get_meta("parent_segment"):', "if False:",
        "test_exchange.py::test_a_segment_of_another_chain_is_refused",
    ),
    Mutation(
        5, "the round does not sync blocks", _COMMITTER,
        "        self._blocks.sync_all()\n", "", _POWER,
    ),
    Mutation(
        5, "the round does not sync the database", _COMMITTER,
        "        self._db.sync()\n", "", _POWER,
    ),
    Mutation(
        5, "fsync does not sync the file's blocks", _OPENFILE,
        "        self._blocks.finish_sync(begun)\n", "", _POWER,
    ),
    Mutation(
        5, "fsync does not end the file's turn", _LEDGER,
        "self.undo.end_turn_of(node_id)", "0", _POWER,
    ),
    Mutation(
        5, "what a change replaces is not copied", _OPENFILE,
        "                self._blocks.undo.keep(self.node_id, runs, cut_run)\n", "", _POWER,
    ),
    Mutation(
        5, "turns begin anew in each process", _UNDO,
        "1 + (row[0] or 0 if row else 0)", "1", _POWER,
    ),
    Mutation(
        5, "dropped blocks are not looked at after a cut", _STORE,
        "dropped = set(self.undo.dropped())", "dropped: set[bytes] = set()",
        "faults/test_power.py::test_a_state_whose_blocks_were_dropped_is_not_taken_for_whole",
    ),
    Mutation(
        5, "what a rename moves over a file is not synced", "vfs/hidden.py",
        "self._files.fsync(handle, lambda: None)", "pass", _POWER,
    ),
    Mutation(
        5, "files end in bytes that were never sealed", _OPENFILE,
        "for index in sorted(indexes):", "for index in sorted(indexes, reverse=True):",
        "test_openfile.py::test_a_flush_that_fails_half_way_leaves_no_zeros_that_nobody_wrote",
    ),
    Mutation(
        5, "requests are served before recovery", "binding.py",
        "        self.operations.start()\n        answer_init(library, fuse, wanted)\n",
        "        answer_init(library, fuse, wanted)\n        self.operations.start()\n",
        "test_daemon.py::test_no_request_is_served_before_recovery_is_done",
    ),
    Mutation(
        5, "a removed open file may come back", "vfs/hidden.py",
        "if asked is Request.REMOVAL:", "if False:",
        "faults/test_kills.py::test_who_removes_an_open_file_and_dies_has_removed_it",
    ),
    Mutation(
        5, "a rename that is not known as one becomes a removal after a while", "vfs/hidden.py",
        "if self._before is None or self._sleeps() != self._before:", "if True:",
        "test_vfs.py::test_while_a_program_waits_its_rename_may_still_follow",
    ),
    Mutation(
        5, "of several names, the one that a rename replaces is not noted", "vfs/hidden.py",
        "            if asked is Request.REMOVAL:", "            if node.nlink > 1:",
        "test_vfs.py::test_a_crash_between_the_halves_brings_one_of_several_names_back",
    ),
    Mutation(
        5, "what a transaction is changing is looked at", _KNOWN,
        "return self._touched_nodes[number] if self._db.owner == get_ident() else None",
        "return self._nodes.get(number)",
        "test_known.py::test_what_a_transaction_has_changed_is_seen_when_it_has_ended",
    ),
    Mutation(
        5, "a name is learned from rows that are older than its last change", _KNOWN,
        "                self._recent_names.update(names)\n", "",
        "test_known.py::test_what_was_changed_since_the_last_commit_is_not_learned",
    ),
    Mutation(
        5, "a node is learned from rows that are older than its last change", _KNOWN,
        "                self._recent_nodes.update(nodes)\n", "",
        "test_known.py::test_what_was_changed_since_the_last_commit_is_not_learned",
    ),
    Mutation(
        5, "what another computer changed is learned from older rows", _KNOWN,
        "            self._is_blind = True\n", "",
        "test_known.py::test_what_others_have_changed_is_not_learned_before_it_is_committed",
    ),
    Mutation(
        5, "what was read before a change and a commit is learned after them", _KNOWN,
        "self._is_blind or self._commits != commits or", "self._is_blind or",
        "test_known.py::test_what_changes_while_it_is_read_is_not_learned",
    ),
    Mutation(
        5, "of a folder that lost a name is believed that all are known", _KNOWN,
        "            self._whole.discard(name[0])\n", "",
        "test_known.py::test_more_names_than_are_remembered_are_found",
    ),
    Mutation(
        5, "of a folder whose names were forgotten is believed that all are known", _KNOWN,
        "            self._whole.clear()\n            for known", "            for known",
        "test_known.py::test_what_stayed_in_a_new_folder_after_all_is_found",
    ),
    Mutation(
        5, "a name is missing while another file takes it", "vfs/paths.py",
        "            if number == before:", "            if before:",
        "test_known.py::test_a_name_is_never_missing_while_it_is_replaced_again_and_again",
    ),
    Mutation(
        5, "SIGTERM does not take in what the kernel holds", "process/daemon.py",
        "    def _unmount(self) -> None:\n        self._hand_over()\n",
        "    def _unmount(self) -> None:\n        os._exit(0)\n",
        "test_daemon.py::test_what_the_kernel_gathered_of_an_open_file_is_kept",
    ),
    Mutation(
        6, "reservations pass the limit", "blocks/budget.py",
        "if size_bytes > room or self._closed:", "if self._closed:",
        "test_cache.py::test_no_more_than_the_limit_is_ever_given_out",
    ),
    Mutation(
        6, "the floor of free space does not count", "blocks/budget.py",
        "return min(self._limit_bytes - counted, self._free_bytes - self._min_free_bytes)",
        "return self._limit_bytes - counted",
        "test_cache.py::test_the_floor_of_free_space_holds_though_others_use_the_disk",
    ),
    Mutation(
        6, "pins take all room", "blocks/pinned.py",
        "return int(max(0, limit - work - row[0]))", "return int(limit)",
        "test_pins.py::test_pins_leave_room_for_work",
    ),
    Mutation(
        7, "the end does not end waits for room", "blocks/budget.py",
        "if self._closed or remaining <= 0:", "if remaining <= 0:",
        "test_transfer.py::test_stopping_ends_every_wait",
    ),
    Mutation(
        7, "a place on a connection that becomes free wakes nobody", "remote/pool.py",
        "            for freed in self._freed.values():\n                freed.notify()\n", "",
        "test_remote_pool.py::test_a_place_that_becomes_free_wakes_one_of_those_who_wait",
    ),
    Mutation(
        7, "the end of a login's first connection is the end of all", "remote/sharing.py",
        "ended = [child] if child is not self._carrier or not self._children else []",
        "ended = [child]",
        "test_remote_sharing.py::test_the_first_of_them_may_end_first",
    ),
    Mutation(
        7, "a login whose line may be dead takes further connections", "remote/sharing.py",
        "            self._is_ending = True\n", "",
        "test_remote_sharing.py::test_a_login_whose_connections_end_takes_no_more",
    ),
    Mutation(
        7, "an answer that comes slowly is taken for none", "remote/connection.py",
        "self._receive(length - 1, PROGRESS_SECONDS)", "self._receive(length - 1, 3600.0)",
        "test_remote_connection.py::"
        "test_an_answer_that_takes_longer_than_the_limit_but_comes_is_waited_for",
    ),
    Mutation(
        7, "a server without an answer is waited for", "remote/connection.py",
        "patience_seconds = limit_seconds or self._timeout_seconds", "patience_seconds = 1e6",
        "test_remote_sftp.py::test_a_frozen_server_is_noticed_within_the_limit",
    ),
    Mutation(
        7, "a look waits for every transaction", _KNOWN,
        "        if number in self._touched_nodes:", "        if self._touched_nodes:",
        "test_known.py::test_what_a_transaction_leaves_alone_is_seen_at_once",
    ),
    Mutation(
        7, "each new name is looked for in the table", _KNOWN,
        "self._whole.add(node.id)", "pass",
        "test_known.py::test_of_a_new_folder_is_known_what_it_lacks",
    ),
    Mutation(
        7, "a look for what is not known waits for every transaction", "metadata/tree.py",
        "found = self._known.learn(name)", "found = None",
        "test_known.py::test_what_is_not_known_is_learned_without_waiting",
    ),
    Mutation(
        7, "who is killed goes on waiting for a writer", "vfs/filelock.py",
        "if self._is_abandoned():", "if False:",
        "faults/test_network.py::test_a_signal_ends_the_wait_for_a_writer_that_waits",
    ),
    Mutation(
        5, "the round waits for those who wait for a block", _COMMITTER,
        "time.monotonic() + _PATIENCE_SECONDS", "1e9",
        "faults/test_network.py::"
        "test_who_waits_for_a_block_keeps_nothing_else_from_becoming_power_safe",
    ),
    Mutation(
        5, "what is power-safe waits for programs that are busy", _COMMITTER,
        "            is_safe = self._has_done(self._begin)\n",
        "            self._let_pass()\n            is_safe = self._has_done(self._begin)\n",
        "test_committer.py::test_while_programs_are_busy_all_is_safe_and_the_rest_waits",
    ),
    Mutation(
        8, "small rewrites may be gone before the files of their epoch are written", _COMMITTER,
        'if self._db.query_one("SELECT 1 FROM patch LIMIT 1"):', "if False:",
        "test_committer.py::test_small_rewrites_go_with_their_epoch_however_busy_programs_are",
    ),
    Mutation(
        8, "a segment that a crash let it forget is not adopted", _PUBLISH,
        "        self._commit(publication.key, publication.last)\n", "",
        "test_exchange.py::test_what_is_published_is_cloned",
    ),
    Mutation(
        8, "nobody looks whether published segments have settled", _PUBLISH,
        "if self._settling.has_lost():", "if False:",
        "test_exchange.py::test_what_a_server_lost_that_can_not_sync_is_made_up_for",
    ),
    Mutation(
        8, "a checkpoint takes chunks that have changed since", _PUBLISH,
        '            forget_touched(self._db, self._db.get_meta("published") + 1, last)\n', "",
        "test_exchange.py::test_a_checkpoint_costs_what_changed",
    ),
    Mutation(
        8, "local segment files are not synced", "exchange/journal.py",
        "            os.fsync(descriptor)\n        finally:\n            os.close(descriptor)\n"
        "        os.rename",
        "            pass\n        finally:\n            os.close(descriptor)\n        os.rename",
        _SEGMENTS_POWER,
    ),
    Mutation(
        8, "the folder of local segment files is not synced", "exchange/journal.py",
        "        _sync_folder(self._folder)\n", "", _SEGMENTS_POWER,
    ),
    Mutation(
        8, "local segment files come before what they say is safe", _COMMITTER,
        "        self._blocks.sync_all()\n        if newest",
        "        self._journal(newest)\n"
        "        self._blocks.sync_all()\n        if newest",
        _SEGMENTS_POWER,
    ),
    Mutation(
        8, "small rewrites are taken for those of any epoch", "exchange/journal.py",
        "if epoch <= newest), default=0", "), default=0",
        "test_journal.py::test_small_rewrites_of_a_round_that_was_cut_short_are_not_laid_over_"
        "the_one_before",
    ),
    Mutation(
        5, "a time that was only guessed is not taken back", "vfs/writetimes.py",
        "            self.latest_ns, self._is_guess = self._sure_ns, False\n", "            pass\n",
        "test_file_times.py::test_what_the_kernel_tells_no_time_of_has_its_time_already",
    ),
    Mutation(
        5, "content has its old time until the kernel tells the new one", "vfs/writetimes.py",
        "self.latest_ns, self._is_guess = now_ns, True", "self._is_guess = True",
        "test_file_times.py::test_content_that_has_changed_never_has_the_old_time_after_a_crash",
    ),
    Mutation(
        5, "a reading counts for more than the time that was set by hand after it",
        "metadata/tree.py",
        "        self._readings.drop(node.id)\n        self._known.put(node)\n",
        "        self._known.put(node)\n",
        "test_readings.py::test_a_time_that_is_set_by_hand_counts_for_more_than_the_reading_before",
    ),
    Mutation(
        5, "times of reading are never written", _COMMITTER,
        "            self._vfs.files.save_readings()\n", "",
        "test_readings.py::test_a_reading_shows_at_once_and_is_in_the_table_after_a_round",
    ),
    Mutation(
        5, "transactions are not noted before they are committed", "metadata/db.py",
        "                is_kept = self._log.append(self._statements, changes)",
        "                is_kept = True",
        "test_redo.py::test_what_has_ended_is_there_after_a_kill",
    ),
    Mutation(
        5, "the redo log of a killed process is not looked at", "metadata/db.py",
        "                self._take_up_log()\n", "",
        "test_redo.py::test_what_has_ended_is_there_after_a_kill",
    ),
    Mutation(
        5, "a torn record is taken for whole", "metadata/redo.py",
        "view[head:start], key) != checksum", "view[head:start], key) == 0",
        "test_redo.py::test_a_log_that_is_torn_anywhere_gives_the_transactions_before",
    ),
    Mutation(
        5, "each process's redo log has the same key", "metadata/db.py",
        "secrets.randbits(63)", "1", "test_redo.py::test_the_log_of_another_database_does_nothing",
    ),
    Mutation(
        5, "what SQLite has committed is done again", "metadata/db.py",
        "self._connection.execute(_NOTE_SEQUENCE, (self._log.sequence,))", "pass",
        "test_redo.py::test_a_log_that_is_behind_the_database_does_nothing",
    ),
    Mutation(
        5, "who fails takes others with it", "metadata/db.py",
        '            records = self._log.group(self.get_meta("redo_sequence", 0))',
        "            records = iter(())",
        "test_redo.py::test_who_fails_undoes_nothing_of_others",
    ),
    Mutation(
        5, "a sync leaves out what is not committed", "metadata/db.py",
        "            covered = self._commit_all()", "            covered = self.ended", _POWER,
    ),
    Mutation(
        9, "a look ahead of a publication counts for ever", "exchange/roles.py",
        "time.monotonic() < self._look_holds_until", "self._look_holds_until > 0.0",
        "test_exchange.py::test_a_look_ahead_counts_for_a_moment_and_once",
    ),
    Mutation(
        9, "a former writer does not look after its segment", _PUBLISH,
        "        self._looks.behind(there)\n", "",
        "test_exchange.py::test_a_segment_that_comes_too_late_is_a_branch",
    ),
    Mutation(
        8, "segments are published over a gap", "exchange/roles.py",
        "if not self._setback.has_gap:", "if True:",
        "test_exchange.py::test_a_remote_that_was_away_is_looked_at_before_more_is_published",
    ),
    Mutation(
        9, "a claim counts that is not there any more", "exchange/writers.py",
        "for each in self._claims if _name(each) in same}", "for each in self._claims}",
        "test_exchange.py::test_a_writer_whose_claim_is_gone_writes_no_more",
    ),
    Mutation(
        9, "a writer does not look behind its segment whether its mark still stands",
        "exchange/roles.py", "if there != set(self._identity.own_keys()):",
        "if there - set(self._identity.own_keys()):",
        "test_exchange.py::"
        "test_a_writer_whose_copy_begins_before_its_segment_has_a_name_counts_it_not",
    ),
    Mutation(
        8, "small rewrites do not count as changes that the server lacks", "process/engine.py",
        "len(self._contents.patched_nodes())", "0",
        "test_stranded.py::"
        "test_a_small_rewrite_that_only_this_computer_has_is_told_after_the_unmount",
    ),
    Mutation(
        8, "where a new writer's local segment files go on is not kept", "exchange/journal.py",
        '            self._note_parent(reader, published, values["seed"])\n', "",
        "test_rebuild.py::test_a_new_writer_keeps_what_it_has_not_published",
    ),
    Mutation(
        9, "a displaced writer that has small rewrites follows", "exchange/stranded.py",
        " + (SELECT count(DISTINCT node) FROM patch)", "",
        "test_stranded.py::"
        "test_a_displaced_writer_whose_small_rewrites_are_stranded_does_not_follow",
    ),
    Mutation(
        9, "a displaced writer goes on uploading", "transfer/uploads.py",
        "        if not self._is_allowed:\n", "        if False:\n",
        "test_stranded.py::test_blocks_that_only_stranded_changes_name_stay_here",
    ),
    Mutation(
        9, "blocks that only a displaced writer names may be evicted", "exchange/roles.py",
        "            self._keep_stranded()\n", "",
        "test_stranded.py::test_blocks_that_only_stranded_changes_name_stay_here",
    ),
    Mutation(
        1, "a segment gets its name before its blocks have theirs", _PUBLISH,
        "            return first_unuploaded(reader, publication.first, publication.last) is None",
        "            return True",
        "test_exchange.py::test_a_segment_whose_blocks_do_not_come_gets_no_name",
    ),
    Mutation(
        1, "a segment gets its name before it may", "remote/files.py",
        "                if not may_show():\n                    return None\n", "",
        "test_flush.py::test_far_away_the_segment_is_on_its_way_beside_the_last_blocks",
    ),
    Mutation(
        9, "an empty claim counts, and nobody passes it over", "exchange/writers.py",
        "if not data and may_be_empty:", "if False:",
        "test_exchange.py::"
        "test_an_empty_claim_is_passed_over_and_its_maker_displaced_should_it_live",
    ),
    Mutation(
        5, "doing a group again needs room on the disk", "metadata/connection.py",
        '    connection.execute(f"PRAGMA cache_spill = -{_SPILL_KIB}")\n', "",
        "test_redo.py::test_a_full_disk_undoes_no_group_that_is_larger_than_the_cache",
    ),
    Mutation(
        10, "the socket answers everybody", "process/control.py",
        "if uid not in (os.getuid(), 0):", "if False:",
        "test_control.py::test_another_user_is_refused",
    ),
    Mutation(
        11, "rows go that a kept moment sees", _PRUNING,
        "SELECT 1 FROM epoch WHERE seq >= past.born AND seq < past.died",
        "SELECT 1 FROM epoch WHERE seq < 0",
        "test_prune.py::test_what_no_kept_moment_saw_goes_and_the_rest_stays",
    ),
    Mutation(
        11, "rows go before the decision is published", _PRUNING,
        'return found if found.epoch <= db.get_meta("published") else None', "return found",
        "test_prune.py::test_nothing_is_removed_before_the_decision_is_published",
    ),
    Mutation(
        11, "nobody asks whether a moment is kept when a row of it is missing",
        "metadata/history.py", "if epoch > 0 and not self.is_kept(epoch):", "if False:",
        "test_prune.py::test_who_reads_a_moment_while_it_is_pruned_gets_an_error_and_nothing_wrong",
    ),
    Mutation(
        11, "named snapshots go like other moments", _PRUNE,
        "            kept |= {found.epoch for found in self._moments.named()}\n", "",
        "test_prune.py::test_what_no_kept_moment_saw_goes_and_the_rest_stays",
    ),
    Mutation(
        11, "what is named during a sweep goes", _STORE,
        "                and not self.garbage.is_named_since(block_id)\n", "",
        "test_prune.py::test_what_is_named_held_or_under_way_is_no_garbage",
    ),
    Mutation(
        11, "what is being uploaded goes", _STORE,
        "if block_id not in uploading\n", "if True\n",
        "test_prune.py::test_what_is_named_held_or_under_way_is_no_garbage",
    ),
    Mutation(
        11, "what somebody is about to name goes", _STORE,
        "if block_id not in self._holds]\n            self.garbage.add", "]\n"
        "            self.garbage.add",
        "test_prune.py::test_what_is_named_held_or_under_way_is_no_garbage",
    ),
    Mutation(
        11, "objects move before it is on the disk that they are garbage", _SWEEP,
        "        self._s._db.sync()\n        return condemned", "        return condemned",
        "test_prune.py::test_what_is_garbage_is_on_the_disk_before_its_object_moves",
    ),
    Mutation(
        11, "the trash is emptied without a grace", _SWEEP,
        "limit_ns = self._s._clock_ns() - self._grace_ns\n            due",
        "limit_ns = self._s._clock_ns()\n            due",
        "test_prune.py::test_garbage_stays_in_the_trash_for_the_grace",
    ),
    Mutation(
        11, "a displaced writer goes on sweeping", _SWEEP,
        "        self._s._exchange.check_writer()\n", "",
        "test_prune.py::test_a_writer_that_was_displaced_moves_and_deletes_no_more",
    ),
    Mutation(
        11, "what is named is left in the trash", _SWEEP,
        "        self._move_back([key for key in trashed if self._is_named(key)])\n", "",
        "test_prune.py::test_what_is_named_and_in_the_trash_is_moved_back",
    ),
    Mutation(
        11, "a new writer believes in the clean blocks that nothing names",
        "exchange/roles.py", "                self._before_writing()\n", "",
        "test_prune.py::test_who_takes_over_uploads_what_the_other_threw_away",
    ),
    Mutation(
        11, "a checkpoint keeps what was pruned", _PRUNE,
        "pruning.remove_unseen(db, lambda *span: forget_nodes(db, *span))",
        "pruning.remove_unseen(db, lambda *span: None)",
        "test_prune.py::test_the_next_checkpoint_is_without_what_was_pruned",
    ),
    Mutation(
        11, "a clock that is ahead prunes by itself", _PRUNE,
        "may = not is_to_come and not self._has_leapt(newest)", "may = True",
        "test_clock.py::test_a_clock_that_was_ahead_for_a_while_prunes_nothing_by_itself",
    ),
    Mutation(
        11, "a clock that is ahead empties the trash", _PRUNE,
        "may_delete = not grace_seconds or self._may_delete()", "may_delete = True",
        "test_clock.py::test_a_clock_that_is_ahead_does_not_empty_the_trash",
    ),
    Mutation(
        11, "the past can be changed through the mount", _SNAPSHOTS,
        "        # Of all calls that make, move or remove a name.\n"
        "        self._refuse_past(path)\n", "",
        "test_snapshots.py::test_nothing_of_the_past_can_be_changed",
    ),
    Mutation(
        11, "the kernel keeps what a time within the open epoch shows", _SNAPSHOTS,
        "if self._moments.is_fixed(text):", "if True:",
        "test_snapshots.py::test_other_words_are_symlinks_to_a_time",
    ),
    Mutation(
        11, "the kernel keeps that a name is no moment", _SNAPSHOTS,
        "            raise _error(errno.EINVAL) from error",
        "            raise _error(errno.ENOENT) from error",
        "test_snapshots.py::test_what_is_no_moment_may_become_one",
    ),
)  # fmt: skip


def table() -> str:
    """The list for docs/reliability.md."""
    lines = ["| promise | without it | fails |", "|---|---|---|"]
    for one in MUTATIONS:
        name = one.test.replace("::", "`: `")
        lines.append(f"| {one.promise} | {one.what} (`{one.file}`) | `{name}` |")
    return "\n".join(lines) + "\n"


def survivors(mutations: tuple[Mutation, ...]) -> Iterator[tuple[Mutation, str]]:
    """Those that their tests do not notice, each with what pytest said."""
    with tempfile.TemporaryDirectory(prefix="syncer-mutations-") as folder:
        for name in _COPIED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, Path(folder) / name)
        for one in mutations:
            file = Path(folder) / "syncer" / one.file
            whole = file.read_text()
            file.write_text(whole.replace(one.old, one.new))
            # Bytecode is told from its source by the second and the size of it only.
            shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)
            try:
                status, said = _run(one.test, Path(folder))
            finally:
                file.write_text(whole)
            if status != _TESTS_FAILED:
                yield one, said
            else:
                print(f"caught: {one.what}", flush=True)


def _run(test: str, folder: Path) -> tuple[int, str]:
    """pytest's exit status and last lines, for a test of the copy."""
    words = ["-q", "-x", "-m", "not torture", "-p", "no:cacheprovider", f"tests/{test}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TEST_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout[-2000:]


def main() -> int:
    if "--table" in sys.argv:
        print(table(), end="")
        return 0
    chosen = tuple(one for one in MUTATIONS if all(word in str(one) for word in sys.argv[1:]))
    found = 0
    for one, said in survivors(chosen):
        print(f"NOT CAUGHT: {one.what} ({one.file}) by {one.test}\n{said}", flush=True)
        found += 1
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main())
