"""A stand-in for a Qdrant server: a small HTTP server of ours, in memory, with brute-force search

It answers the REST calls that `ccreid.search.qdrant_index` makes, in the forms of Qdrant's API reference (1.20), and refuses what
Qdrant refuses: ids that are neither whole numbers nor UUIDs, vectors of another length, facets of a field without an index, a
wrong key. It is no Qdrant: no HNSW graph, no files, no shards."""
import json, threading, uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np


class Refused(Exception):
    def __init__(self, code, said): self.code,self.said = code,said


def matches(condition, payload):
    "Does a point fulfil one condition?"
    if 'is_empty' in condition: return payload.get(condition['is_empty']['key']) in (None, [])
    value,keys = payload.get(condition['key']),{*condition}-{'key'}
    if keys=={'match'}:
        (kind,wanted), = condition['match'].items()
        if kind not in ('value','any'): raise Refused(400, f'match {kind} is not known')
        return value is not None and (value==wanted if kind=='value' else value in wanted)
    if keys=={'range'}:
        if isinstance(value, bool) or not isinstance(value, (int,float)): return False
        signs = dict(lt=lambda a: value<a, lte=lambda a: value<=a, gt=lambda a: value>a, gte=lambda a: value>=a)
        return all(signs[k](v) for k,v in condition['range'].items() if v is not None)
    raise Refused(400, f'a condition with {sorted(keys)} is not known')


def fits(f, payload):
    f = f or {}
    if {*f}-{'must','must_not'}: raise Refused(400, f'a filter with {sorted(f)} is not known')
    return all(matches(c, payload) for c in f.get('must') or ()) and not any(matches(c, payload) for c in f.get('must_not') or ())


class StandIn:
    "What a server holds; `log` has (method, path, body, key) of each call"
    def __init__(self, key=None, keeps_metadata=True, deletes=True, fail_after=None):
        self.key,self.keeps_metadata,self.deletes,self.fail_after = key,keeps_metadata,deletes,fail_after
        self.collections,self.log,self.upserts,self.lock = {},[],0,threading.Lock()

    def answer(self, method, path, body):
        "The result of a call; `Refused`"
        words = path.split('?')[0].strip('/').split('/')
        if words[0]!='collections' or len(words)<2: raise Refused(404, 'no such place')
        name,rest = words[1],'/'.join(words[2:])
        if (method,rest)==('GET','exists'): return dict(exists=name in self.collections)
        if (method,rest)==('PUT',''): return self.create(name, body)
        if name not in self.collections: raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        if (method,rest)==('DELETE',''): return bool(self.collections.pop(name))
        call = {('GET',''): self.info, ('PATCH',''): self.update, ('PUT','index'): self.index, ('PUT','points'): self.upsert,
                ('POST','points'): self.retrieve, ('POST','points/scroll'): self.scroll, ('POST','points/count'): self.count,
                ('POST','points/delete'): self.delete, ('POST','points/query/batch'): self.query, ('POST','facet'): self.facet}.get((method,rest))
        if call is None: raise Refused(404, f'{method} {path} is not answered by this stand-in')
        return call(self.collections[name], body)

    def create(self, name, body):
        if name in self.collections: raise Refused(409, f'Wrong input: Collection `{name}` already exists!')
        vectors = body['vectors']
        assert vectors['distance']=='Cosine' and vectors['size']>0
        self.collections[name] = dict(vectors=vectors, metadata=dict(body.get('metadata') or {}) if self.keeps_metadata else None, schema={}, points={})
        return True

    def update(self, c, body):
        assert {*body}=={'metadata'}
        c['metadata'] |= body['metadata']
        return True

    def info(self, c, body):
        return dict(status='green', optimizer_status='ok', points_count=len(c['points']), indexed_vectors_count=0, segments_count=1,
                    payload_schema={k: dict(data_type=v, points=sum(k in p for _,p in c['points'].values())) for k,v in c['schema'].items()},
                    config=dict(params=dict(vectors=c['vectors']), hnsw_config=dict(m=16, ef_construct=100, full_scan_threshold=10000),
                                optimizer_config=dict(deleted_threshold=.2, vacuum_min_vector_number=1000, default_segment_number=0, flush_interval_sec=5),
                                **({} if c['metadata'] is None else dict(metadata=c['metadata']))))

    def done(self): return dict(operation_id=len(self.log), status='completed')

    def index(self, c, body):
        assert body['field_schema'] in ('keyword','float')
        c['schema'][body['field_name']] = body['field_schema']
        return self.done()

    def upsert(self, c, body):
        self.upserts += 1
        if self.fail_after is not None and self.upserts>self.fail_after: raise Refused(507, 'Not enough space available for optimization')
        batch = body['batch']
        for i in batch['ids']: self.point_id(i)
        for i,v,p in zip(batch['ids'], batch['vectors'], batch['payloads'], strict=True):
            if len(v)!=c['vectors']['size']: raise Refused(400, f"Wrong input: Vector dimension error: expected dim: {c['vectors']['size']}, got {len(v)}")
            row = np.float32(v)
            c['points'][i] = (row/np.linalg.norm(row), p)
        return self.done()

    @staticmethod
    def point_id(i):
        if isinstance(i, int) and i>=0: return i
        try: return uuid.UUID(i)
        except (ValueError,AttributeError,TypeError): raise Refused(400, f'Format error in JSON body: value {i} is not a valid point ID, valid values are either an unsigned integer or a UUID') from None

    @staticmethod
    def shown(i, point, body, score=None):
        vector,payload = point
        wanted = body.get('with_payload', True)
        payload = payload if wanted is True else {k: payload[k] for k in wanted or () if k in payload}
        found = dict(id=i, payload=payload)
        if body.get('with_vector'): found['vector'] = vector.tolist()
        return found if score is None else found | dict(version=1, score=score)

    def retrieve(self, c, body): return [self.shown(i, c['points'][i], body) for i in body['ids'] if i in c['points']]
    def count(self, c, body): return dict(count=sum(fits(body.get('filter'), p) for _,p in c['points'].values()))

    def scroll(self, c, body):
        there = sorted(i for i,(_,p) in c['points'].items() if fits(body.get('filter'), p) and i>=(body.get('offset') or ''))
        page,rest = there[:body['limit']],there[body['limit']:]
        return dict(points=[self.shown(i, c['points'][i], body) for i in page], next_page_offset=rest[0] if rest else None)

    def delete(self, c, body):
        assert {*body}=={'points'}
        for i in body['points']:
            self.point_id(i)
            if self.deletes: c['points'].pop(i, None)
        return self.done()

    def one(self, c, body):
        q = np.float32(body['query']['nearest'] if isinstance(body['query'], dict) else body['query'])
        if len(q)!=c['vectors']['size']: raise Refused(400, 'Wrong input: Vector dimension error')
        there = [i for i,(_,p) in c['points'].items() if fits(body.get('filter'), p)]
        if not there: return dict(points=[])
        scores = np.stack([c['points'][i][0] for i in there])@(q/np.linalg.norm(q))
        return dict(points=[self.shown(there[n], c['points'][there[n]], body, float(scores[n])) for n in np.argsort(-scores, kind='stable')[:body['limit']]])

    def query(self, c, body): return [self.one(c, s) for s in body['searches']]

    def facet(self, c, body):
        if c['schema'].get(body['key'])!='keyword': raise Refused(400, f"Bad request: No appropriate index for faceting: `{body['key']}`")
        values = [p[body['key']] for _,p in c['points'].values() if body['key'] in p]
        hits = [dict(value=v, count=values.count(v)) for v in dict.fromkeys(values)]
        return dict(hits=sorted(hits, key=lambda h: (-h['count'],h['value']))[:body['limit']])


@contextmanager
def serving(prefix='', **settings):
    "(address, `StandIn`) while it runs, on a port of its own"
    held = StandIn(**settings)

    class Handler(BaseHTTPRequestHandler):
        def do(self):
            data = self.rfile.read(int(self.headers.get('Content-Length') or 0))
            body,given = json.loads(data) if data else None,self.headers.get('api-key')
            with held.lock:
                held.log.append((self.command, self.path, body, given))
                try:
                    if held.key and given!=held.key: raise Refused(401 if given is None else 403, 'Must provide an API key or an Authorization bearer token')
                    if not self.path.startswith(prefix): raise Refused(404, 'no such place')
                    code,said = 200,dict(result=held.answer(self.command, self.path[len(prefix):], body), status='ok')
                except Refused as e: code,said = e.code,dict(status=dict(error=e.said))
                except Exception as e: code,said = 500,dict(status=dict(error=f'the stand-in cannot answer: {e!r}'))
            data = json.dumps(said | dict(time=0.)).encode()
            self.send_response(code)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do
        def log_message(self, *words): pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
    thread.start()
    try: yield f'http://127.0.0.1:{server.server_port}{prefix}',held
    finally:
        server.shutdown(); server.server_close(); thread.join()
