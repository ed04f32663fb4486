"The real pose networks, from a wheel of the package registry; a fixture for whoever wants them"
import hashlib,subprocess,sys,zipfile
import pytest

NETWORKS = { # in the wheel of mediapipe 0.10.21: file, its digest, and mean and deviation of its input
    'pose_detector.tflite': ('mediapipe/modules/pose_detection/pose_detection.tflite',
        '9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c', 127.5, 127.5),
    'pose_landmarks_detector.tflite': ('mediapipe/modules/pose_landmark/pose_landmark_full.tflite',
        'e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f', 0., 255.)}


def describe(network, mean, deviation):
    "Say in a network's own metadata that its input is one RGB picture, and how its pixels are scaled"
    import flatbuffers
    from mediapipe.tasks.metadata import metadata_schema_py_generated as meta, schema_py_generated as schema
    scale = meta.NormalizationOptionsT()
    scale.mean,scale.std = [mean],[deviation]
    unit = meta.ProcessUnitT()
    unit.optionsType,unit.options = meta.ProcessUnitOptions.NormalizationOptions,scale
    picture = meta.ImagePropertiesT()
    picture.colorSpace = meta.ColorSpaceType.RGB
    content = meta.ContentT()
    content.contentPropertiesType,content.contentProperties = meta.ContentProperties.ImageProperties,picture
    entry = meta.TensorMetadataT()
    entry.name,entry.content,entry.processUnits = 'image',content,[unit]
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(network, 0))
    graph,whole = meta.SubGraphMetadataT(),meta.ModelMetadataT()
    graph.inputTensorMetadata,graph.outputTensorMetadata = [entry],[meta.TensorMetadataT() for _ in model.subgraphs[0].outputs]
    whole.name,whole.subgraphMetadata = 'pose',[graph]
    b = flatbuffers.Builder(0)
    b.Finish(whole.Pack(b), b'M001')
    data,link = schema.BufferT(),schema.MetadataT()
    data.data,link.name,link.buffer = bytearray(b.Output()),'TFLITE_METADATA',len(model.buffers)
    model.buffers.append(data)
    model.metadata = [*(model.metadata or []), link]
    b = flatbuffers.Builder(0)
    b.Finish(model.Pack(b), b'TFL3')
    return bytes(b.Output())


@pytest.fixture(scope='session')
def task_file(request):
    "MediaPipe's pose networks, bundled as its Tasks API wants them; kept from one run to the next"
    folder = request.config.cache.mkdir('mediapipe-0.10.21')
    path = folder/'pose_landmarker_full.task'
    if path.exists(): return path
    command = [sys.executable, '-m', 'pip', 'download', '--disable-pip-version-check', '--quiet', '--no-deps', '--retries', '1', '--timeout', '20', '--dest', str(folder),
        '--only-binary', ':all:', '--platform', 'manylinux_2_28_x86_64', '--implementation', 'cp', '--python-version', '3.11', '--abi', 'cp311', 'mediapipe==0.10.21']
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        trouble = ('Connection','connection','Retrying','timed out','Temporary failure','Network is unreachable')
        if any(t in done.stderr for t in trouble): pytest.skip('the package registry cannot be reached, and the pose networks come from a wheel there')
        pytest.fail(f'pip could not get the wheel with the pose networks: {done.stderr[-500:]}')
    wheel = next(folder.glob('mediapipe-0.10.21-*.whl'))
    part = path.with_suffix('.part')
    with zipfile.ZipFile(wheel) as w, zipfile.ZipFile(part, 'w', zipfile.ZIP_STORED) as bundle:
        for name,(member,digest,mean,deviation) in NETWORKS.items():
            network = w.read(member)
            assert hashlib.sha256(network).hexdigest()==digest
            bundle.writestr(name, describe(network, mean, deviation))
    part.replace(path)
    wheel.unlink()
    return path
