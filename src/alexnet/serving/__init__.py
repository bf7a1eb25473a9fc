"""HTTP server and web page for trained models (`alexnet serve`).

Public names: `server.serve`, `app.create_app`, `registry.open_models`, `settings.Settings`.
Read in this order: settings, registry (the models), batching, requests (reading bodies), explain (saliency and more for
the page), routes, middleware, app, server (connections and the process), metrics, pages, then templates/ and web/ (the
page).
"""
