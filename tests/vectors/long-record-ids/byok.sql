PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE np_byok_migrations (
    version       INTEGER PRIMARY KEY,
    name          TEXT NOT NULL,
    checksum      BLOB NOT NULL,
    oldest_reader INTEGER NOT NULL,
    applied_at    INTEGER NOT NULL
) STRICT;
INSERT INTO np_byok_migrations VALUES(1,'tables',X'bf82fe4efa0674479d79acb387cf0ac5ea30421181315726c9a8df27ece21d66030c2cb2f9b9812df926441100070966',1,1796032570216000);
INSERT INTO np_byok_migrations VALUES(2,'proofs',X'c3e21ff945bafa756e577bf526137f16687009d1fe1c9e68836ee277e09ff039cd7f5dbe30457afaecb6cc5e9ebba805',1,1796032570216000);
INSERT INTO np_byok_migrations VALUES(3,'announcements',X'df54f95888f6055e8936f3eb99cc2744542c5912548efb094eb6481a091014c7d863c22963b16b67a5175f002709722f',1,1796032570217000);
INSERT INTO np_byok_migrations VALUES(4,'merkle',X'85107c6d98cbab7feaf118232a3965d361a4c02943e4c492548b590d8dee29a3f201f80d09d4faa6c5a2353a552fcdee',4,1796032570225000);
INSERT INTO np_byok_migrations VALUES(5,'tiles',X'2483be2ebb16c2efbdd1807b3cee471bc10ffc6f0de2df6bce9d823f3db9b92d7dd345a702414986daf394cb47a22036',4,1796032570229000);
INSERT INTO np_byok_migrations VALUES(6,'keeping',X'96aae46b62654d184c34d52d792bfc9045a30af7077ae176497e5ae111c9a7d72fa37caf9618614945370f511148ba25',4,1796032570230000);
INSERT INTO np_byok_migrations VALUES(7,'streams',X'd1a177dec24d3f7a28ffdf4c15a83304b742097eba965ab9ed6a14cdbd32d04a2942a9b87ab96174afa12810a99590e8',4,1796032570230000);
INSERT INTO np_byok_migrations VALUES(8,'publications',X'8a43478d2260c363bea7503091e2017ae9f5e177dfeb268ff481114124c7b0d9befa687a353af31262d76bc53c9b010c',4,1796032570231000);
CREATE TABLE np_byok_tenants (
    uid        BLOB PRIMARY KEY NOT NULL CHECK (length(uid) = 16),
    name       TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT;
INSERT INTO np_byok_tenants VALUES(X'5eda10491c79ee820d64acae071fabd5','primary',1796032570240000);
CREATE TABLE np_byok_heads (
    tenant BLOB PRIMARY KEY NOT NULL REFERENCES np_byok_tenants,
    size   INTEGER NOT NULL DEFAULT 0 CHECK (size >= 0)
, log INTEGER NOT NULL DEFAULT 1 CHECK (log > 0), first INTEGER NOT NULL DEFAULT 0 CHECK (first >= 0), frontier BLOB NOT NULL DEFAULT x'') STRICT;
INSERT INTO np_byok_heads VALUES(X'5eda10491c79ee820d64acae071fabd5',5,1,0,X'db6231c11dfc4d0d3047eeb170bcb172b3b5f286de63c953ba43db7417f670ba38c4d0a0854226d0db0f13811ba0e86de72ee778a91c30c2b64dd69d2a20b159');
CREATE TABLE np_byok_wrapped_deks (
    tenant       BLOB NOT NULL,
    id           BLOB NOT NULL,
    record_id    TEXT,
    wrapped      BLOB NOT NULL,
    key_name     TEXT NOT NULL,
    key_version  TEXT NOT NULL,
    wrap_scheme  INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    rewrapped_at INTEGER,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
INSERT INTO np_byok_wrapped_deks VALUES(X'5eda10491c79ee820d64acae071fabd5',X'01a22be2239c70d78194f512b2859b09','user-123',X'62796f6b3a76313a4161497234694f63634e65426c505553736f57624364654c6c3946716b53796a576c4d3262374b6c666b5633367a636777477a6d5969656444444354746b4e31784a67563537335f306870353362487456347a6555394170324c6f35453641676e4c685a47777a454a36564f6f446f48776238415a4b726c7a705454325978777a545f4842476242695f524770574d4d','local','1',1,1796032570267663,NULL);
INSERT INTO np_byok_wrapped_deks VALUES(X'5eda10491c79ee820d64acae071fabd5',X'01a22be23368730fbcdbf00914470b2c','rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr',X'62796f6b3a76313a41614972346a4e6f63772d38325f414a4645634c4c42796562483433695f4f6e5379335545575362634e5174634877506e314270414334584d38385455514444304a7352315a426352795242385f6b52534d676d43485744694248306e354e42365473756872525a45585a63506d65684e4761384d424d463673506259596c68597a6a615a747431475472734a463542','local','1',1,1796032574311336,NULL);
INSERT INTO np_byok_wrapped_deks VALUES(X'5eda10491c79ee820d64acae071fabd5',X'01a22be2337a72ef901614c1e726aac3','ssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss',X'62796f6b3a76313a41614972346a4e3663752d5146685442357961717731334e6a61783961716b6f64413962374a455178356973676f2d50335035744f504b724d764341366f6752624d42692d70353034386b722d354e3649454574754d5f565536344b346a696c355553337338433154776173636254305f63304e496a516c79454b715a73654c693468746946734e6b45476a6e6c612d','local','1',1,1796032574329196,NULL);
CREATE TABLE np_byok_audit (
    tenant       BLOB NOT NULL,
    seq          INTEGER NOT NULL CHECK (seq >= 0),
    at           INTEGER NOT NULL,
    id           BLOB NOT NULL CHECK (length(id) = 16),
    operation    TEXT NOT NULL,
    outcome      TEXT NOT NULL,
    means        TEXT NOT NULL,
    role         TEXT NOT NULL,
    user_id      TEXT,
    user_salt    BLOB CHECK (length(user_salt) = 16),
    user_hmac    BLOB CHECK (length(user_hmac) = 32),
    request_id   TEXT,
    request_salt BLOB CHECK (length(request_salt) = 16),
    request_hmac BLOB NOT NULL CHECK (length(request_hmac) = 32),
    item_count   INTEGER NOT NULL CHECK (item_count >= 0),
    records      TEXT NOT NULL CHECK (json_type(records) = 'array'),
    items        BLOB NOT NULL, detail TEXT, digest BLOB NOT NULL
    DEFAULT x'0000000000000000000000000000000000000000000000000000000000000000' CHECK (length(digest) = 32),
    PRIMARY KEY (tenant, seq),
    CHECK (user_hmac IS NOT NULL OR (user_id IS NULL AND user_salt IS NULL))
) STRICT;
INSERT INTO np_byok_audit VALUES(X'5eda10491c79ee820d64acae071fabd5',0,1796032570272598,X'01a22be223a07729b4fbdedfa4050193','encrypt','OK','operator','admin',NULL,NULL,NULL,'01a22be2-239b-7729-b4fb-dedfa4050192',X'f07915b97b7ec0812b25e9aaa9607f8b',X'3f6a1457bd0ed4ad3aefa651a44999ea9e27f27867ea70374ba47c729e912d3f',1,'[["user-123","vpG3Ye7piM6QtP9DqOdL5w"]]',X'01000100056c6f63616c000131000000000b00010000000001a22be2239c70d78194f512b2859b09779e799d4d1dbcb0d611d08c02b3dff8cf23cdc75af7200211c340369990b9e9',NULL,X'2958579f5bdc12a50652b183a7e765aca8c53becc76134f0b535ea374597068e');
INSERT INTO np_byok_audit VALUES(X'5eda10491c79ee820d64acae071fabd5',1,1796032574312898,X'01a22be233687729b4fbdedfa4050195','encrypt','OK','jwt','admin','admin',X'0347a3d875490d7c651eea0fe017961f',X'6a2ad94835c5cc2084f789421a05ea7dce3a8c2174a4fae993adc2bce919b9b0','01a22be2-3366-7729-b4fb-dedfa4050194',X'3b2ce9d649cb2d880525aac015737c63',X'a89f3fa3fc192530747cb1aab74873cdaa528c439a8f01ce4c6c53f4ede0335c',1,'[["rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr","2ImLhdjU1ZElGJMUFOv4/w"]]',X'01000100056c6f63616c000131000000000b00010000000001a22be23368730fbcdbf00914470b2c396f3d39abc7e300132944171f64d0550951268e0d2331695a1a5c9364ef9334',NULL,X'adfd1d98190f0a9de29f1f176e548ad7c083ef42b5728e418e40c64eee6f5646');
INSERT INTO np_byok_audit VALUES(X'5eda10491c79ee820d64acae071fabd5',2,1796032574322401,X'01a22be233727729b4fbdedfa4050197','decrypt','OK','jwt','admin','admin',X'baedbfbd40213befb9eff2f32c1d7655',X'fda9038fee8c9132b19add2acea9486790eb23daaa035bf9a9f234687b04cb17','01a22be2-3371-7729-b4fb-dedfa4050196',X'677e5fae05ae9f7c50c2ba1c1f698cd1',X'bde3e0936f6f5d4c1fe8fa71f65dd346fb2a158d0240b05f2eaffd2c4fa369b6',1,'[["rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr","CAwfTGn/zx+7hulXV/q4pA"]]',X'01000100056c6f63616c000131000000000700010000000001a22be23368730fbcdbf00914470b2c4a3106c66351122116fc89967f3624e4e71fea4b373fee9fb9e8284de23296ed',NULL,X'6ddc0b4afdf6944b2f6a7f840e727aca70c61c203c4697e063349b4d6f33d978');
INSERT INTO np_byok_audit VALUES(X'5eda10491c79ee820d64acae071fabd5',3,1796032574331290,X'01a22be2337b7729b4fbdedfa4050199','encrypt','OK','jwt','admin','admin',X'3fda6bd0edcf8015ce8bb06b7d61267f',X'91bf59e2213a997cdc3583129dcbf38cdcebc452d5ddcb0b9a2c84d0842f4936','01a22be2-3378-7729-b4fb-dedfa4050198',X'42b210927747c88c27b6872e35f046b9',X'722aa06d80dda9846eee0d043ee0f5ef3e5e583805c128a46529bfe638b7aa8d',1,'[["ssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss","+rZgohVb1seLIRULjQ00nw"]]',X'01000100056c6f63616c000131000000000b00010000000001a22be2337a72ef901614c1e726aac3dd3ef3041610ce973adbd5007593e8f4aae3f40eb48024cb8f8b766b98560327',NULL,X'c0b0b4783735fa5ab0c550d724d3376843e4df8b555e048a9594fb15dcf9cca2');
INSERT INTO np_byok_audit VALUES(X'5eda10491c79ee820d64acae071fabd5',4,1796032574341071,X'01a22be233847729b4fbdedfa405019b','decrypt','OK','jwt','admin','admin',X'2dd066ec5ab583319ae48a04f030d6c3',X'542f7b021c410bb3d929a9649316d61bebe74ce10c9609123fcb196ffd12e15b','01a22be2-3384-7729-b4fb-dedfa405019a',X'9e0fe50769acbec5ffaba04c00b66fab',X'eacbde5b809f24d3f97091c7b8d9515aafe3d04b20da565b2de4cfa82c643cb2',1,'[["ssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss","7TX1ZH22zDwkU0rnJ2p1UQ"]]',X'01000100056c6f63616c000131000000000700010000000001a22be2337a72ef901614c1e726aac3420f677b723e6b8c0488ee97b5cb564f027381622cae620a3e9bcf96207100f2',NULL,X'5058253ff299a214987ef97eedc3dae1f8b437d0768d85737fd153ad501adeb2');
CREATE TABLE np_byok_jobs (
    tenant         BLOB NOT NULL REFERENCES np_byok_tenants,
    id             BLOB NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('RUNNING', 'DONE')),
    target_key     TEXT NOT NULL,
    target_version TEXT NOT NULL,
    total          INTEGER NOT NULL,
    rewrapped      INTEGER NOT NULL,
    skipped        INTEGER NOT NULL,
    failed         INTEGER NOT NULL,
    kms_calls      INTEGER NOT NULL,
    stalled        TEXT,
    started_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL,
    finished_at    INTEGER,
    cursor         BLOB,
    holder         BLOB,
    lease_until    INTEGER,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE np_byok_proofs (
    tenant        BLOB NOT NULL REFERENCES np_byok_tenants,
    key_name      TEXT NOT NULL,
    key_version   TEXT NOT NULL,
    posture       TEXT NOT NULL CHECK (posture IN ('active', 'degraded', 'revoked')),
    epoch         INTEGER NOT NULL CHECK (epoch >= 0),
    revision      INTEGER NOT NULL CHECK (revision >= 0),
    proven_at     INTEGER NOT NULL,
    since         INTEGER NOT NULL,
    steady_since  INTEGER,
    failures      INTEGER NOT NULL,
    falls         INTEGER NOT NULL,
    doubted_by    BLOB,
    next_probe_at INTEGER NOT NULL,
    needed_until  INTEGER NOT NULL,
    canary_dek    BLOB NOT NULL,
    canary        BLOB NOT NULL,
    canary_scheme INTEGER NOT NULL,
    canary_probe  INTEGER NOT NULL,
    PRIMARY KEY (tenant, key_name, key_version)
) STRICT, WITHOUT ROWID;
INSERT INTO np_byok_proofs VALUES(X'5eda10491c79ee820d64acae071fabd5','local','1','active',0,8,1796032574329000,1796032570269000,1796032570269000,0,0,NULL,1796032575329000,1796032583816000,X'01a22be2239d74e79596aef2048a570a',X'62796f6b3a76313a4161497234694f64644f65566c71377942497058436e686554534479674373666b5f736d4d5779474b434759536d4f526b746541544567475a646f4a5964617247436761686b6e456f3571553633766e4150764638787468436b66584661613148466e31744a35797a74566a67564f672d566f594b754b52503638665f756e41654947774c585f78454f664e51533073',1,1);
CREATE TABLE np_byok_incidents (
    tenant         BLOB NOT NULL REFERENCES np_byok_tenants,
    id             BLOB NOT NULL,
    at             INTEGER NOT NULL,
    key_name       TEXT NOT NULL,
    key_version    TEXT NOT NULL,
    was            TEXT NOT NULL CHECK (was IN ('active', 'degraded', 'revoked')),
    posture        TEXT NOT NULL CHECK (posture IN ('active', 'degraded', 'revoked')),
    class          TEXT,
    http_status    INTEGER,
    kms_request_id TEXT,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE np_byok_announcements (
    -- The order in which they are made: within a key version the order in which its posture changed.
    place           INTEGER PRIMARY KEY NOT NULL,
    tenant          BLOB NOT NULL,
    incident        BLOB NOT NULL,
    attempts        INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) * 1000),
    holder          BLOB,
    outcome         TEXT CHECK (outcome IN ('announced', 'refused', 'given_up')),
    ended_at        INTEGER CHECK ((ended_at IS NULL) = (outcome IS NULL)),
    UNIQUE (tenant, incident),
    FOREIGN KEY (tenant, incident) REFERENCES np_byok_incidents
) STRICT;
CREATE TABLE np_byok_checkpoints (
    tenant  BLOB NOT NULL REFERENCES np_byok_tenants,
    log     INTEGER NOT NULL,
    size    INTEGER NOT NULL CHECK (size >= 0),
    note    TEXT NOT NULL,
    made_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, log, size)
) STRICT, WITHOUT ROWID;
INSERT INTO np_byok_checkpoints VALUES(X'5eda10491c79ee820d64acae071fabd5',1,1,replace('byok/primary/1\n1\nTFVgEflArXWeeFMaqyBlRDboCr+h+fW4UqtNplUIWs4=\n\n— byok/primary/1 0FA2O3gw9Z0sLgLFuTmfp5HRB6NtLVpFM01YXD/Qc/1R5oFOb4BuRsOhW4eukY5JFuUF1EoiXkImoQxaNKP8BheSGwo=\n','\n',char(10)),1796032571276000);
CREATE TABLE np_byok_tiles (
    tenant BLOB NOT NULL REFERENCES np_byok_tenants,
    log    INTEGER NOT NULL CHECK (log > 0),
    level  INTEGER NOT NULL CHECK (level BETWEEN 0 AND 7),
    tile   INTEGER NOT NULL CHECK (tile >= 0),
    root   BLOB NOT NULL CHECK (length(root) = 32),
    hashes BLOB NOT NULL CHECK (length(hashes) = 8192),
    PRIMARY KEY (tenant, log, level, tile)
) STRICT;
CREATE TABLE np_byok_chunks (
    tenant   BLOB NOT NULL REFERENCES np_byok_tenants,
    level    INTEGER NOT NULL CHECK (level IN (0, 1)),
    chunk    INTEGER NOT NULL CHECK (chunk >= 0),
    earliest INTEGER NOT NULL,
    latest   INTEGER NOT NULL,
    PRIMARY KEY (tenant, level, chunk)
) STRICT, WITHOUT ROWID;
CREATE TABLE np_byok_chunk_values (
    tenant BLOB NOT NULL REFERENCES np_byok_tenants,
    value  INTEGER NOT NULL,
    chunk  INTEGER NOT NULL CHECK (chunk >= 0),
    PRIMARY KEY (tenant, value, chunk)
) STRICT, WITHOUT ROWID;
CREATE TABLE np_byok_holds (
    tenant BLOB PRIMARY KEY NOT NULL REFERENCES np_byok_tenants,
    since  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE np_byok_exports (
    tenant BLOB NOT NULL REFERENCES np_byok_tenants,
    first  INTEGER NOT NULL,
    past   INTEGER NOT NULL CHECK (past > first),
    at     INTEGER NOT NULL,
    PRIMARY KEY (tenant, first, past)
) STRICT, WITHOUT ROWID;
CREATE TABLE np_byok_streams (
    tenant        BLOB NOT NULL REFERENCES np_byok_tenants,
    name          TEXT NOT NULL CHECK (name IN ('file', 'webhook')),
    next          INTEGER NOT NULL DEFAULT 0 CHECK (next >= 0),
    holder        BLOB NOT NULL,
    leased_until  INTEGER NOT NULL,
    failing_since INTEGER,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE np_byok_logs (
    tenant   BLOB NOT NULL REFERENCES np_byok_tenants,
    log      INTEGER NOT NULL CHECK (log > 0),
    first    INTEGER NOT NULL CHECK (first >= 0),
    size     INTEGER NOT NULL CHECK (size >= first),
    frontier BLOB NOT NULL,
    ended_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, log)
) STRICT, WITHOUT ROWID;
CREATE TABLE np_byok_publications (
    tenant          BLOB NOT NULL REFERENCES np_byok_tenants,
    place           TEXT NOT NULL,
    log             INTEGER,
    size            INTEGER CHECK ((size IS NULL) = (log IS NULL)),
    published_at    INTEGER CHECK ((published_at IS NULL) = (log IS NULL)),
    failures        INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0),
    next_attempt_at INTEGER NOT NULL,
    holder          BLOB NOT NULL,
    PRIMARY KEY (tenant, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX np_byok_wrapped_deks_record ON np_byok_wrapped_deks (tenant, record_id, id) WHERE record_id IS NOT NULL;
CREATE TRIGGER np_byok_audit_no_delete BEFORE DELETE ON np_byok_audit
BEGIN
    SELECT RAISE(ABORT, 'np_byok_audit: entries are never deleted');
END;
CREATE TRIGGER np_byok_audit_no_replace BEFORE INSERT ON np_byok_audit
WHEN EXISTS (SELECT 1 FROM np_byok_audit WHERE tenant = NEW.tenant AND seq = NEW.seq)
    OR EXISTS (SELECT 1 FROM np_byok_audit WHERE rowid = NEW.rowid)
BEGIN
    SELECT RAISE(ABORT, 'np_byok_audit: entries are never replaced');
END;
CREATE UNIQUE INDEX np_byok_jobs_running ON np_byok_jobs (tenant) WHERE state = 'RUNNING';
CREATE INDEX np_byok_announcements_open ON np_byok_announcements (place) WHERE outcome IS NULL;
CREATE TRIGGER np_byok_incidents_announce AFTER INSERT ON np_byok_incidents
BEGIN
    INSERT INTO np_byok_announcements (tenant, incident) VALUES (NEW.tenant, NEW.id);
END;
CREATE TRIGGER np_byok_audit_no_update BEFORE UPDATE ON np_byok_audit
WHEN NOT (
    NEW.rowid IS OLD.rowid AND NEW.tenant IS OLD.tenant AND NEW.seq IS OLD.seq AND NEW.at IS OLD.at
    AND NEW.id IS OLD.id AND NEW.operation IS OLD.operation AND NEW.outcome IS OLD.outcome
    AND NEW.means IS OLD.means AND NEW.role IS OLD.role AND NEW.user_hmac IS OLD.user_hmac
    AND NEW.request_hmac IS OLD.request_hmac AND NEW.item_count IS OLD.item_count AND NEW.items IS OLD.items
    AND NEW.detail IS OLD.detail AND NEW.digest IS OLD.digest
    AND (NEW.user_id IS NULL OR NEW.user_id IS OLD.user_id)
    AND (NEW.user_salt IS NULL OR NEW.user_salt IS OLD.user_salt)
    AND (NEW.request_id IS NULL OR NEW.request_id IS OLD.request_id)
    AND (NEW.request_salt IS NULL OR NEW.request_salt IS OLD.request_salt)
    AND json_type(NEW.records) IS 'array'
    AND json_array_length(NEW.records) IS json_array_length(OLD.records)
    AND NOT EXISTS (
        SELECT 1 FROM json_each(NEW.records) AS n JOIN json_each(OLD.records) AS o ON o.key = n.key
        WHERE n.type <> 'null' AND (n.type IS NOT o.type OR n.value IS NOT o.value))
)
BEGIN
    SELECT RAISE(ABORT, 'np_byok_audit: entries are never changed');
END;
CREATE TRIGGER np_byok_tiles_no_update BEFORE UPDATE ON np_byok_tiles
BEGIN
    SELECT RAISE(ABORT, 'np_byok_tiles: tiles are never changed');
END;
CREATE TRIGGER np_byok_tiles_no_delete BEFORE DELETE ON np_byok_tiles
BEGIN
    SELECT RAISE(ABORT, 'np_byok_tiles: tiles are never deleted');
END;
CREATE TRIGGER np_byok_tiles_no_replace BEFORE INSERT ON np_byok_tiles
WHEN EXISTS (
        SELECT 1 FROM np_byok_tiles WHERE tenant = NEW.tenant AND log = NEW.log AND level = NEW.level AND tile = NEW.tile)
    OR EXISTS (SELECT 1 FROM np_byok_tiles WHERE rowid = NEW.rowid)
BEGIN
    SELECT RAISE(ABORT, 'np_byok_tiles: tiles are never replaced');
END;
COMMIT;
