"""Runs moto, an S3 server in memory, until it is killed. scripts/s3.sh starts it.

    serve_moto.py FACTS CLOCK

When the server is ready, the file FACTS has lines NAME=VALUE for its clients. The file CLOCK has the
hours by which the server's clock is ahead, such as +3h.
"""

import datetime
import os
import sys
import threading

import boto3
import moto.core.utils
import moto.s3.models
from moto.moto_server import threaded_moto_server

REGION = "us-east-1"
BUCKET = "backups"
LOCKED_BUCKET = "locked"
RETENTION = {"Mode": "GOVERNANCE", "Days": 30}

facts_file, clock_file = sys.argv[1:]


def now():
    with open(clock_file) as file:
        hours = int(file.read().strip().strip("h"))
    return moto.core.utils.utcnow() + datetime.timedelta(hours=hours)


class OneAtATime(threaded_moto_server.DomainDispatcherApplication):
    """Moto looks for an object and puts it in two steps, which S3 servers do in one."""

    turn = threading.Lock()

    def __call__(self, environ, start_response):
        with self.turn:
            return list(super().__call__(environ, start_response))


moto.s3.models.utcnow = now
threaded_moto_server.DomainDispatcherApplication = OneAtATime
server = threaded_moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
facts = {
    "ENDPOINT": f"http://{host}:{port}",
    "REGION": REGION,
    "KEY": "testkey",
    "SECRET": "testsecret",
    "BUCKET": BUCKET,
    "LOCKED_BUCKET": LOCKED_BUCKET,
}
client = boto3.client(
    "s3",
    endpoint_url=facts["ENDPOINT"],
    region_name=REGION,
    aws_access_key_id=facts["KEY"],
    aws_secret_access_key=facts["SECRET"],
)
client.create_bucket(Bucket=BUCKET)
client.create_bucket(Bucket=LOCKED_BUCKET, ObjectLockEnabledForBucket=True)
client.put_object_lock_configuration(
    Bucket=LOCKED_BUCKET,
    ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": RETENTION}},
)
# The caller waits for the file, so it appears whole.
with open(facts_file + ".new", "w") as file:
    file.writelines(f"{name}={value}\n" for name, value in facts.items())
os.rename(facts_file + ".new", facts_file)
threading.Event().wait()
