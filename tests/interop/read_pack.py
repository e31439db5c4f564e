"""Restores a disk from a pack repository in a folder, after docs/pack-format.md alone.

    age -d -i identity.txt REPOSITORY/keys/ID.age | python3 read_pack.py REPOSITORY DOMAIN ID DISK FILE

ID is that of the restore point. A repository without encryption needs no input. Checks everything
but the ids of blocks, for which pure Python is too slow.
"""
import json, pathlib, struct, sys

import zstandard
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

CLUSTER, ZERO = 65536, bytes(32)
MASK = 0xFFFFFFFF
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
START, END, PARENT, ROOT, KEYED, CONTEXT, MATERIAL = 1, 2, 4, 8, 16, 32, 64


def rotated(word, by):
    return (word >> by | word << 32 - by) & MASK


# BLAKE3: https://github.com/BLAKE3-team/BLAKE3-specs
def compress(chain, block, counter, flags):
    words = list(struct.unpack("<16I", block.ljust(64, b"\0")))
    v = [*chain, *IV[:4], counter & MASK, counter >> 32, len(block), flags]

    def mix(a, b, c, d, x, y):
        for word, first, second in ((x, 16, 12), (y, 8, 7)):
            v[a] = (v[a] + v[b] + word) & MASK
            v[d] = rotated(v[d] ^ v[a], first)
            v[c] = (v[c] + v[d]) & MASK
            v[b] = rotated(v[b] ^ v[c], second)

    for _ in range(7):
        for i in range(4):
            mix(i, 4 + i, 8 + i, 12 + i, words[2 * i], words[2 * i + 1])
        for i in range(4):
            mix(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, words[8 + 2 * i], words[9 + 2 * i])
        words = [words[i] for i in (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)]
    return [v[i] ^ v[i + 8] for i in range(8)]


def node(data, key, flags, number=0, top=ROOT):
    if len(data) <= 1024:
        blocks = [data[at : at + 64] for at in range(0, len(data), 64)] or [b""]
        chain = key
        for place, block in enumerate(blocks):
            edge = (START if place == 0 else 0) | (END | top if place == len(blocks) - 1 else 0)
            chain = compress(chain, block, number, flags | edge)
        return chain
    left = 1024 << ((len(data) - 1) // 1024).bit_length() - 1
    halves = node(data[:left], key, flags, number, 0) + node(data[left:], key, flags, number + left // 1024, 0)
    return compress(key, struct.pack("<16I", *halves), 0, flags | PARENT | top)


def keyed(key, data):
    return struct.pack("<8I", *node(data, struct.unpack("<8I", key), KEYED))


def derived(master, what):
    context = f"vmsnap pack repository 2026-11-28 {what}".encode()
    return struct.pack("<8I", *node(master, node(context, IV, CONTEXT), MATERIAL))


# XChaCha20-Poly1305: draft-irtf-cfrg-xchacha
def subkey(key, nonce):
    s = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), *struct.unpack("<4I", nonce)]

    def quarter(a, b, c, d):
        for x, y, z, by in ((a, b, d, 16), (c, d, b, 20), (a, b, d, 24), (c, d, b, 25)):
            s[x] = (s[x] + s[y]) & MASK
            s[z] = rotated(s[z] ^ s[x], by)

    for _ in range(10):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<8I", *s[:4], *s[12:])


class Repository:
    def __init__(self, root):
        self.root = pathlib.Path(root)
        text = (self.root / "vmsnap.json").read_text()
        self.about = json.loads(text)
        assert self.about["format"] == 1
        self.is_open = self.about["cipher"] == "none"
        key = self.about["key"] if self.is_open else json.load(sys.stdin)["key"]
        self.master = bytes.fromhex(key)
        self.encryption, self.seals = derived(self.master, "encryption"), derived(self.master, "seals")
        seal = self.about["seal"]
        assert keyed(self.seals, text.replace(seal, "0" * 64, 1).encode()).hex() == seal, "not this key"
        self.places = {}
        for pack in sorted(self.root.glob("packs/*/*")):
            self.read_table(pack)

    def decrypt(self, sealed, context):
        nonce, rest = sealed[:24], sealed[24:]
        cipher = ChaCha20Poly1305(subkey(self.encryption, nonce[:16]))
        return cipher.decrypt(bytes(4) + nonce[16:], rest, context)

    def unpack(self, kind, data, length):
        plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=length) if kind else data
        assert len(plain) == length
        return plain

    def record(self, name, sealed):
        context = f"record {name}".encode()
        if self.is_open:
            payload = sealed[32:]
            assert keyed(self.seals, context + b"\0" + payload) == sealed[:32], name
        else:
            payload = self.decrypt(sealed, context)
        kind, length = struct.unpack_from("<BI", payload)
        return self.unpack(kind, payload[5:], length)

    def read_table(self, pack):
        content = pack.read_bytes()
        magic, form, length = struct.unpack_from("<8sII", content, len(content) - 48)
        assert (magic, form) == (b"vmsnPACK", 1), pack
        name = pack.relative_to(self.root).as_posix()
        table = self.record(name, content[-48 - length : -48])
        at = 0
        for number in range(struct.unpack_from("<I", table, 1)[0]):
            id, stored, plain = struct.unpack_from("<32sII", table, 5 + 40 * number)
            self.places[id] = (pack, at, stored, plain)
            at += stored

    def block(self, id):
        pack, at, stored, plain = self.places[id]
        with pack.open("rb") as file:
            file.seek(at)
            sealed = file.read(stored)
        payload = sealed if self.is_open else self.decrypt(sealed, id)
        return self.unpack(payload[0], payload[1:], plain)

    def point(self, domain, id):
        parts = [b"domain", domain.encode()]
        hashed = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
        folder = self.root / "points" / keyed(derived(self.master, "names"), hashed).hex()
        for path in folder.iterdir():
            name = path.relative_to(self.root).as_posix()
            manifest = json.loads(json.loads(self.record(name, path.read_bytes()))["manifest"])
            if manifest["id"] == id:
                return manifest
        raise SystemExit(f"no restore point {id}")

    def ids(self, page, kind, head):
        form, found, count = struct.unpack_from("<BBH", page)
        assert (form, found) == (1, kind)
        return [page[head + 32 * i : head + 32 * (i + 1)] for i in range(count)]

    def restore(self, root, out):
        page = self.block(root)
        out.truncate(struct.unpack_from("<Q", page, 4)[0])
        for high, branch in enumerate(self.ids(page, 3, 12)):
            leaves = [] if branch == ZERO else self.ids(self.block(branch), 2, 4)
            for low, leaf in enumerate(leaves):
                if leaf != ZERO:
                    self.restore_leaf(self.block(leaf), (256 * high + low) * 2048, out)

    def restore_leaf(self, page, base, out):
        form, kind, blocks, runs = struct.unpack_from("<BBHH", page)
        assert (form, kind) == (1, 1)
        for run in range(runs):
            first, count, number, inside = struct.unpack_from("<4H", page, 6 + 32 * blocks + 8 * run)
            block = self.block(page[6 + 32 * number : 38 + 32 * number])
            out.seek((base + first) * CLUSTER)
            out.write(block[inside * CLUSTER : (inside + count) * CLUSTER])


def main(root, domain, id, disk, to):
    repository = Repository(root)
    manifest = repository.point(domain, id)
    [file] = [file for file in manifest["files"] if file["name"] == f"{disk}.map"]
    with open(to, "wb") as out:
        repository.restore(bytes.fromhex(file["blake3"]), out)


main(*sys.argv[1:])
