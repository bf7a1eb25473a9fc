"""HTTP server and web page for trained models (`alexnet serve`).

Public names: `app.serve`, `app.create_app`, `registry.open_models`, `settings.Settings`.
Read in this order: settings, registry (the models), requests (reading bodies), batching, routes (/v1/predict and
errors), middleware (counting, timeouts, origin checks), metrics, app (application and server process), docs_page; then
the web page: explain (saliency, activations, neighbors), ui_routes, web/.
"""
