# onnxcalib on CPUs. Models and samples are mounted:
#   docker build -t onnxcalib --build-arg TORCH_INDEX=URL .
#   docker run --rm -v "$PWD":/work onnxcalib quantize model.onnx --calib images/
# TORCH_INDEX is pip's index of CPU builds of torch. With QUANTIZE= the image has validate alone, and no torch.
FROM python:3.11-slim
ARG QUANTIZE=yes
ARG TORCH_INDEX=
COPY . /opt/source
RUN ONNXCALIB_HOME=/opt/onnxcalib PIP_NO_CACHE_DIR=1 bash /opt/source/step/install.sh
# Not an image with gigabytes of CUDA in it, in silence.
RUN test ! -e /opt/onnxcalib/venv/lib/python3.11/site-packages/nvidia
ENV PATH=/opt/onnxcalib/venv/bin:$PATH HOME=/tmp
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["onnxcalib"]
CMD ["--help"]
