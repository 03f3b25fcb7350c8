"""Django in one file, both ways."""

import hashlib

from django.conf import settings

settings.configure(
    ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="tests only", DATA_UPLOAD_MAX_MEMORY_SIZE=None, MIDDLEWARE=[]
)

from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse  # noqa: E402
from django.urls import path  # noqa: E402


def home(request):
    return HttpResponse("hello")


def upload(request):
    body = request.body
    return JsonResponse({"size": len(body), "sha256": hashlib.sha256(body).hexdigest()})


def stream(request):
    if not hasattr(request, "scope"):
        return StreamingHttpResponse((f"part {number}\n" for number in range(5)), content_type="text/plain")

    async def parts():
        for number in range(5):
            yield f"part {number}\n"

    return StreamingHttpResponse(parts(), content_type="text/plain")


def fail(request):
    raise RuntimeError("on purpose")


urlpatterns = [path("", home), path("upload", upload), path("stream", stream), path("fail", fail)]
asgi = get_asgi_application()
wsgi = get_wsgi_application()
