BEGIN TRANSACTION;
CREATE TABLE alert (
    run_id INTEGER NOT NULL, n INTEGER NOT NULL, alert_id TEXT NOT NULL, layer TEXT, step INTEGER,
    rule TEXT NOT NULL, state TEXT NOT NULL, severity TEXT NOT NULL, time REAL, body TEXT NOT NULL,
    PRIMARY KEY (run_id, n)
) WITHOUT ROWID;
INSERT INTO "alert" VALUES(1,1,'aaaaaaaaaaaaaaaa','h.0.w',1,'effective_rank_drop','firing','warning',1700000000.0,'{"schema":1,"alert_id":"aaaaaaaaaaaaaaaa","run":"lm","layer":"h.0.w","step":1,"severity":"warning","state":"firing","rule":"effective_rank_drop","metric":"effective_rank","value":1.0,"baseline":2.0,"message":"fell","advice":"look","time":1700000000.0}');
CREATE TABLE base (
    stream_id TEXT NOT NULL, run_id INTEGER NOT NULL, kind TEXT NOT NULL, base INTEGER NOT NULL,
    PRIMARY KEY (stream_id, run_id, kind)
) WITHOUT ROWID;
CREATE TABLE firing (
    alert_id TEXT PRIMARY KEY, run_id INTEGER NOT NULL, n INTEGER NOT NULL, body TEXT
) WITHOUT ROWID;
INSERT INTO "firing" VALUES('aaaaaaaaaaaaaaaa',1,1,NULL);
CREATE TABLE judge (layer_id INTEGER PRIMARY KEY, n INTEGER NOT NULL, state BLOB NOT NULL);
INSERT INTO "judge" VALUES(1,1,X'7374617465');
CREATE TABLE kind (
    kind_id INTEGER PRIMARY KEY,
    shape TEXT NOT NULL, method TEXT NOT NULL, source_dtype TEXT NOT NULL, wire_dtype TEXT NOT NULL,
    run_id INTEGER NOT NULL, last_n INTEGER NOT NULL,
    UNIQUE (run_id, shape, method, source_dtype, wire_dtype)
);
INSERT INTO "kind" VALUES(1,'[64, 96]','gram_eigvalsh_float64','float32','float32',1,1);
INSERT INTO "kind" VALUES(2,'[64, 96]','gram_eigvalsh_float64','float32','bfloat16',1,1027);
INSERT INTO "kind" VALUES(3,'[64, 96]','golub_kahan_cpu','float32','bfloat16',1,4);
INSERT INTO "kind" VALUES(4,'[64, 96]','golub_kahan_cpu','float32','float32',1,5);
INSERT INTO "kind" VALUES(5,'[1100, 1200]','hutch_golub_kahan_cpu','float32','float32',1,6);
INSERT INTO "kind" VALUES(6,'[2, 64, 96]','gram_eigvalsh_float64','float32','bfloat16',1,7);
INSERT INTO "kind" VALUES(7,'[64, 96]','noticed','float32','bfloat16',1,1034);
INSERT INTO "kind" VALUES(8,'[64, 96]','gram','float32','bfloat16',1,1036);
CREATE TABLE layer (
    layer_id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES run,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    last_step INTEGER, last_time REAL,
    num_measurements INTEGER NOT NULL DEFAULT 0,
    num_superseded INTEGER NOT NULL DEFAULT 0,
    rolled_step INTEGER,                    -- of the last finite, not all-zero measurement in the roll-up
    UNIQUE (run_id, name, role)
);
INSERT INTO "layer" VALUES(1,1,'h.0.w','weight',9,1700000005.0,9,0,9);
INSERT INTO "layer" VALUES(2,1,'h.1.w','weight',1,1.70000000033333325383e+09,1,0,1);
INSERT INTO "layer" VALUES(3,1,'h.2.experts','weight',1,1.70000000033333325383e+09,1,0,1);
INSERT INTO "layer" VALUES(4,1,'h.3.qkv:q','weight',1,1.70000000033333325383e+09,1,0,1);
CREATE TABLE measurement (
    layer_id INTEGER NOT NULL, n INTEGER NOT NULL, run_id INTEGER NOT NULL,
    step INTEGER, time REAL, kind_id INTEGER NOT NULL, finite INTEGER NOT NULL, zero INTEGER NOT NULL,
    stable_rank REAL, effective_rank REAL, effective_rank_energy REAL, participation_ratio REAL,
    spectral_norm REAL, frobenius_norm REAL, measure_seconds REAL, extra TEXT,
    PRIMARY KEY (layer_id, n)
) WITHOUT ROWID;
INSERT INTO "measurement" VALUES(1,1,1,1,1.70000000033333325383e+09,1,1,0,2.11268660667374561521e+01,5.6900450725190914623e+01,4.54847117627565253892e+01,3.81791521056108820167e+01,1.72513488954393103824e+01,7.92940495946739218888e+01,0.005469,'{"effective_rank_ratio":0.9943135039004078,"nuclear_norm":573.6640465848272,"num_above_mp_edge":0.0,"stable_rank_ratio":1.0892417384840731,"tier":"exact","wire_noise_floor":0.0,"source_noise_floor":5.433511940833061e-07,"error_bound":3.2224165484967398e-15}');
INSERT INTO "measurement" VALUES(1,2,1,2,1.70000000066666674615e+09,2,1,0,2.11321185043646799775e+01,5.69001935374115674903e+01,4.54842639367331642592e+01,3.81787715484357050845e+01,1.72493840997058818227e+01,7.92948736891613492616e+01,0.001307,'{"effective_rank_ratio":0.9943090096428268,"nuclear_norm":573.6631565935197,"num_above_mp_edge":0.0,"stable_rank_ratio":1.0895125393815788,"tier":"exact","wire_noise_floor":0.035614136667395824,"source_noise_floor":5.434285990508396e-07,"error_bound":3.2208713646989667e-15,"effective_rank_raw":56.900577066252474,"effective_rank_ratio_raw":0.9943157116618931,"nuclear_norm_raw":573.6694092677737,"inside_noise":false}');
INSERT INTO "measurement" VALUES(1,3,1,3,1700000001.0,2,1,0,5.07828556958728327686e+00,2.44700630435787829246e+01,1.24201029485610394689e+01,9.15662256862007772895e+00,9.99937662317728404026e-01,2.25336469578645681721e+00,0.000997,'{"effective_rank_ratio":0.42760494539901667,"nuclear_norm":9.60889535279773,"num_above_mp_edge":6.0,"stable_rank_ratio":0.26182210768329256,"tier":"exact","effective_rank_low":24.470063043578783,"effective_rank_high":24.631580485675507,"effective_rank_ratio_low":0.42760494539901667,"effective_rank_ratio_high":0.43042740061238327,"nuclear_norm_low":9.60889535279773,"nuclear_norm_high":9.620351951198305,"wire_noise_floor":0.001416462987430745,"source_noise_floor":2.1613509940044328e-08,"error_bound":4.379656937809864e-12,"effective_rank_raw":24.631580485675507,"effective_rank_ratio_raw":0.43042740061238327,"nuclear_norm_raw":9.620351951198305,"inside_noise":false}');
INSERT INTO "measurement" VALUES(1,4,1,4,1.70000000133333325387e+09,3,1,0,2.12596244496233062189e+01,NULL,NULL,NULL,1.71975790949017977022e+01,7.92948733439428821156e+01,0.003933,'{"effective_rank_ratio":null,"nuclear_norm":null,"num_above_mp_edge":null,"stable_rank_ratio":null,"tier":"norms","spectral_norm_low":17.197431486896413,"spectral_norm_high":19.057169217340782,"stable_rank_low":17.313044246200505,"stable_rank_high":21.259989399962542,"wire_noise_floor":0.035614136667395824,"source_noise_floor":5.434285990508396e-07}');
INSERT INTO "measurement" VALUES(1,5,1,5,1.70000000166666674619e+09,4,1,0,5.07837509319315216771e+00,NULL,NULL,NULL,9.99997371379952482151e-01,2.25351911351802902672e+00,0.002483,'{"effective_rank_ratio":null,"nuclear_norm":null,"num_above_mp_edge":null,"stable_rank_ratio":null,"tier":"norms","spectral_norm_low":0.9999887883336664,"spectral_norm_high":1.0415217803378076,"stable_rank_low":4.681508100376654,"stable_rank_high":5.07846227040164,"wire_noise_floor":0.0,"source_noise_floor":2.1618666983318883e-08}');
INSERT INTO "measurement" VALUES(1,9,1,6,1700000002.0,7,1,1,0.0,0.0,0.0,0.0,0.0,0.0,0.0,'{"tier":"exact","wire_noise_floor":0.0,"source_noise_floor":0.0}');
INSERT INTO "measurement" VALUES(1,10,1,7,1.70000000233333325386e+09,7,0,0,NULL,NULL,NULL,NULL,NULL,NULL,0.0,'{"tier":"exact","wire_noise_floor":null,"source_noise_floor":null}');
INSERT INTO "measurement" VALUES(1,11,1,8,1700000004.0,8,1,0,1.5,2.25,1.1,2.0,3.00000000000000044408e-01,1.0e-30,0.25,NULL);
INSERT INTO "measurement" VALUES(1,12,1,9,1700000005.0,8,1,0,1.5,2.25,1.1,2.0,3.00000000000000044408e-01,1.0e-30,0.25,'{"loss":0.1}');
INSERT INTO "measurement" VALUES(2,6,1,1,1.70000000033333325383e+09,5,1,0,2.91115675286891075748e+02,9.14277059922985358732e+02,6.94918327400022917562e+02,5.73671990992482619745e+02,6.7311824985668465616e+01,1.14848191534493639662e+03,0.069033,'{"effective_rank_ratio":0.9978297760898192,"nuclear_norm":32931.79548092724,"num_above_mp_edge":null,"stable_rank_ratio":1.014014353628604,"tier":"estimate","nuclear_norm_low":32820.33552191285,"nuclear_norm_high":33026.49904906821,"effective_rank_low":906.8670352263499,"effective_rank_high":919.6560897718322,"effective_rank_energy_low":690.7751606167622,"effective_rank_energy_high":699.0321837042086,"participation_ratio_low":570.0281412172321,"participation_ratio_high":577.3391337250883,"spectral_norm_low":67.30695429940367,"spectral_norm_high":68.02265304047934,"stable_rank_low":285.06322166265795,"stable_rank_high":291.157810143249,"effective_rank_ratio_low":0.9897425740719904,"effective_rank_ratio_high":1.00370037744791,"stable_rank_ratio_low":0.992932442310721,"stable_rank_ratio_high":1.0141611177940613,"wire_noise_floor":0.0,"source_noise_floor":1.833868050063717e-06}');
INSERT INTO "measurement" VALUES(3,7,1,1,1.70000000033333325383e+09,6,1,0,5.07828556958728327686e+00,2.44700630435787829246e+01,1.24201029485610394689e+01,9.15662256862007772895e+00,1.72493840997058818227e+01,79.3268847606678,0.00233,'{"effective_rank_ratio":0.42760494539901667,"nuclear_norm":583.2720519463174,"num_above_mp_edge":0.0,"stable_rank_ratio":0.26182210768329256,"tier":"exact","effective_rank_low":24.470063043578783,"effective_rank_high":24.631580485675507,"nuclear_norm_low":583.2720519463174,"nuclear_norm_high":583.2835085447181,"effective_rank_ratio_low":0.42760494539901667,"effective_rank_ratio_high":0.43042740061238327,"wire_noise_floor":0.001416462987430745,"source_noise_floor":2.1613509940044328e-08,"error_bound":4.379656937809864e-12,"effective_rank_raw":24.631580485675507,"effective_rank_ratio_raw":0.43042740061238327,"nuclear_norm_raw":9.620351951198305,"inside_noise":false,"num_zero_parts":0,"experts":{"num":2,"lowest":1,"effective_rank":{"min":24.470063043578783,"median":40.68512829049517,"max":56.90019353741157},"zero":[],"nonfinite":[]}}');
INSERT INTO "measurement" VALUES(4,8,1,1,1.70000000033333325383e+09,2,1,0,2.11321185043646799775e+01,5.69001935374115674903e+01,4.54842639367331642592e+01,3.81787715484357050845e+01,1.72493840997058818227e+01,7.92948736891613492616e+01,0.001259,'{"effective_rank_ratio":0.9943090096428268,"nuclear_norm":573.6631565935197,"num_above_mp_edge":0.0,"stable_rank_ratio":1.0895125393815788,"tier":"exact","wire_noise_floor":0.035614136667395824,"source_noise_floor":5.434285990508396e-07,"error_bound":3.2208713646989667e-15,"effective_rank_raw":56.900577066252474,"effective_rank_ratio_raw":0.9943157116618931,"nuclear_norm_raw":573.6694092677737,"inside_noise":false,"part_of":"h.3.qkv"}');
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO "meta" VALUES('stream_id','3f38beba45634858');
INSERT INTO "meta" VALUES('writer','9c9ce19c3d5e8fef');
CREATE TABLE rollup (
    layer_id INTEGER NOT NULL, bin INTEGER NOT NULL, run_id INTEGER NOT NULL,
    num INTEGER NOT NULL, num_finite INTEGER NOT NULL,
    stable_rank_sum REAL, stable_rank_min REAL, stable_rank_max REAL,
    effective_rank_sum REAL, effective_rank_min REAL, effective_rank_max REAL,
    spectral_norm_sum REAL, spectral_norm_min REAL, spectral_norm_max REAL,
    PRIMARY KEY (run_id, layer_id, bin)
) WITHOUT ROWID;
INSERT INTO "rollup" VALUES(1,1,1,1,1,2.11268660667374561521e+01,2.11268660667374561521e+01,2.11268660667374561521e+01,5.6900450725190914623e+01,5.6900450725190914623e+01,5.6900450725190914623e+01,1.72513488954393103824e+01,1.72513488954393103824e+01,1.72513488954393103824e+01);
INSERT INTO "rollup" VALUES(1,2,1,1,1,2.11321185043646799775e+01,2.11321185043646799775e+01,2.11321185043646799775e+01,5.69001935374115674903e+01,5.69001935374115674903e+01,5.69001935374115674903e+01,1.72493840997058818227e+01,1.72493840997058818227e+01,1.72493840997058818227e+01);
INSERT INTO "rollup" VALUES(1,3,1,1,1,5.07828556958728327686e+00,5.07828556958728327686e+00,5.07828556958728327686e+00,2.44700630435787829246e+01,2.44700630435787829246e+01,2.44700630435787829246e+01,9.99937662317728404026e-01,9.99937662317728404026e-01,9.99937662317728404026e-01);
INSERT INTO "rollup" VALUES(1,4,1,1,1,2.12596244496233062189e+01,2.12596244496233062189e+01,2.12596244496233062189e+01,NULL,NULL,NULL,1.71975790949017977022e+01,1.71975790949017977022e+01,1.71975790949017977022e+01);
INSERT INTO "rollup" VALUES(1,5,1,1,1,5.07837509319315216771e+00,5.07837509319315216771e+00,5.07837509319315216771e+00,NULL,NULL,NULL,9.99997371379952482151e-01,9.99997371379952482151e-01,9.99997371379952482151e-01);
INSERT INTO "rollup" VALUES(1,6,1,1,1,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0);
INSERT INTO "rollup" VALUES(1,7,1,1,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "rollup" VALUES(1,8,1,1,1,1.5,1.5,1.5,2.25,2.25,2.25,3.00000000000000044408e-01,3.00000000000000044408e-01,3.00000000000000044408e-01);
INSERT INTO "rollup" VALUES(1,9,1,1,1,1.5,1.5,1.5,2.25,2.25,2.25,3.00000000000000044408e-01,3.00000000000000044408e-01,3.00000000000000044408e-01);
INSERT INTO "rollup" VALUES(2,1,1,1,1,2.91115675286891075748e+02,2.91115675286891075748e+02,2.91115675286891075748e+02,9.14277059922985358732e+02,9.14277059922985358732e+02,9.14277059922985358732e+02,6.7311824985668465616e+01,6.7311824985668465616e+01,6.7311824985668465616e+01);
INSERT INTO "rollup" VALUES(3,1,1,1,1,5.07828556958728327686e+00,5.07828556958728327686e+00,5.07828556958728327686e+00,2.44700630435787829246e+01,2.44700630435787829246e+01,2.44700630435787829246e+01,1.72493840997058818227e+01,1.72493840997058818227e+01,1.72493840997058818227e+01);
INSERT INTO "rollup" VALUES(4,1,1,1,1,2.11321185043646799775e+01,2.11321185043646799775e+01,2.11321185043646799775e+01,5.69001935374115674903e+01,5.69001935374115674903e+01,5.69001935374115674903e+01,1.72493840997058818227e+01,1.72493840997058818227e+01,1.72493840997058818227e+01);
CREATE TABLE run (
    run_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    first_time REAL, last_time REAL, last_step INTEGER,
    num_measurements INTEGER NOT NULL DEFAULT 0,
    num_alerts INTEGER NOT NULL DEFAULT 0,
    bin_steps INTEGER NOT NULL DEFAULT 1,   -- width of a bin of the roll-up, a power of two
    rolled_n INTEGER NOT NULL DEFAULT 0,    -- the roll-up holds the measurements up to this n
    -- about what is in the file of it: measurements with spectra and kinds, and alerts (rankd/store/size.py)
    measurement_bytes INTEGER NOT NULL DEFAULT 0,
    alert_bytes INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "run" VALUES(1,'lm',1.70000000033333325383e+09,1700000005.0,9,12,1,1,12,10500,356);
CREATE TABLE spectrum (
    layer_id INTEGER NOT NULL, n INTEGER NOT NULL, summary BLOB NOT NULL, PRIMARY KEY (layer_id, n)
) WITHOUT ROWID;
INSERT INTO "spectrum" VALUES(1,3,X'737065637472756D');
CREATE TABLE stream (stream_id TEXT PRIMARY KEY, position INTEGER NOT NULL UNIQUE) WITHOUT ROWID;
INSERT INTO "stream" VALUES('3f38beba45634858',0);
CREATE INDEX kind_by_age ON kind (run_id, last_n);
CREATE UNIQUE INDEX measurement_of_run ON measurement (run_id, n);
COMMIT;
PRAGMA user_version = 2;
