"""Its pages."""

from django.http import HttpRequest, HttpResponse
from django.urls import path

from store.tasks import sell


def buy(_: HttpRequest, article: str) -> HttpResponse:
    """Sell something outside of the request."""
    return HttpResponse(sell.delay(article).get(timeout=20))


urlpatterns = [path("buy/<article>", buy)]
