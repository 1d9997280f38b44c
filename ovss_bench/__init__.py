"""ovss-bench: training-free open-vocabulary semantic segmentation, every method behind one interface.

import ovss_bench as ob
clip = ob.load_clip("demo")
vocabulary = ob.Vocabulary.from_names([["sky", "wall"], ["cat"], ["dog"]], background=True)
prediction = ob.segment(ob.build_segmentor("sclip", clip=clip, vocabulary=vocabulary), image)
"""

try:
    import lazy_loader
except ModuleNotFoundError as error:  # the first library that is imported
    from ovss_bench.missing import explained

    raise explained(error) from None

# __init__.pyi declares the interface, for type checkers and at run time. A module is imported when one of its names is first
# used: importing torch and open_clip takes seconds, and many tools need neither.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
